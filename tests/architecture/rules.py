"""The mechanical rules of this repository. Each takes sources and returns what breaks it.

Pure functions of text, so that each can be shown to fail on a planted violation.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The longest beginning of a path that is listed decides.
MAX_FILE_LINES = {
    "": 600,
    "vllm/worker/model_runner.py": 200,  # features and devices enter through its parts
    "vllm/core/": 250,  # a feature of the scheduler is a pass or a limit: a file of its own
    "vllm/core/kv_cache/": 600,
}
MAX_FUNCTION_LINES = 80

# A level of its own, within which imports go in any direction but round.
FOUNDATION = (
    "errors version logger envs utils sampling_params pooling_params outputs inputs distributed "
    "logprobs sequence structured_params variable hpu_variables "
    "hpu_kernel_variables profiling profiling_variables ray_variables expert_variables "
    "copies_variables"
).split()
# Packages from low to high: a module imports its own package and those of lower levels. Packages
# of one level do not know each other.
LEVELS: tuple[tuple[str, ...], ...] = (
    tuple(FOUNDATION),
    ("messages", "transformers_utils", "parsers"),
    ("device",),
    ("config", "ops", "attention"),
    ("layers", "sample", "structured_output", "metrics", "beam_search", "lora"),
    ("models", "platforms"),
    ("loader", "core"),
    ("worker",),
    ("executor",),
    ("engine",),
    ("entrypoints",),
    ("benchmarks", "v1"),
)
# Below `layers`, models see only these.
MODELS_MAY_IMPORT = frozenset({"layers", "ops", "device", "models", *FOUNDATION})

DEVICE_WORDS = re.compile(r"\bis_(?:hpu|cuda|cpu|rocm)\b|torch\.(?:cuda|hpu)\.|\bhtorch\b")
VARIABLE = re.compile(r"\bVLLM_[A-Z0-9_]*[A-Z0-9]\b")


@dataclass(frozen=True, slots=True)
class Source:
    path: str  # from the root of the repository
    text: str

    @property
    def module(self) -> str:
        parts = Path(self.path).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def tree(self) -> ast.Module:
        return _parse(self.text)


@cache
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


def sources(*folders: str) -> list[Source]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [Source(str(p.relative_to(ROOT)), p.read_text(encoding="utf-8")) for p in paths]


def too_long_files(source: Source, exceptions: Mapping[str, str]) -> Iterator[str]:
    limit = MAX_FILE_LINES[max(filter(source.path.startswith, MAX_FILE_LINES), key=len)]
    lines = source.text.count("\n")
    if lines > limit and source.path not in exceptions:
        yield f"{source.path}: {lines} lines, at most {limit}"


def too_long_functions(source: Source, exceptions: Mapping[str, str]) -> Iterator[str]:
    for node in ast.walk(source.tree()):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES and f"{source.path}:{node.name}" not in exceptions:
                yield f"{source.path}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"


def wrong_imports(source: Source) -> Iterator[str]:
    """Imports against the direction of LEVELS; those of annotations and within functions too."""
    for target in sorted(set(imports(source))):
        reason = import_problem(source.module, target)
        if reason:
            yield f"{source.path} imports {target}: {reason}"


def import_problem(importer: str, target: str) -> str:
    """What is wrong with a module's import of another one; empty if nothing is."""
    mine, theirs = package_of(importer), package_of(target)
    if not mine or not theirs:  # vllm itself: public names, imported lazily
        return ""
    if _is_device(target) and mine != "platforms":
        return "a device's implementation is imported only by vllm.platforms"
    if mine == theirs:
        return ""
    if mine == "models" and theirs not in MODELS_MAY_IMPORT:
        return "models import layers, ops and device only"
    if level_of(theirs) > level_of(mine):
        return f"{mine} is below {theirs}"
    if level_of(theirs) == level_of(mine) > 0:
        return f"{mine} is beside {theirs}"
    return ""


def _is_device(module: str) -> bool:
    """Whether it belongs to the implementation of one device: vllm.platforms.<device> and below."""
    parts = module.split(".")[:3]
    return len(parts) == 3 and parts[1] == "platforms" and ROOT.joinpath(*parts).is_dir()


def circles(some: Iterable[Source]) -> Iterator[str]:
    """Modules that import each other, be it for an annotation: at least one line per circle."""
    arrows = {source.module: _arrows_of(source) for source in some if source.module != "vllm"}
    while True:
        try:
            TopologicalSorter(arrows).prepare()
        except CycleError as error:
            # Each module is imported by the next one.
            circle: list[str] = error.args[1][::-1]
            yield " -> ".join(circle)
            arrows[circle[0]].remove(circle[1])
        else:
            return


def _arrows_of(source: Source) -> list[str]:
    return sorted(set(imports(source)) - {"vllm", source.module})


def package_of(module: str) -> str:
    """The part behind vllm; empty for vllm itself."""
    return module.split(".")[1] if "." in module else ""


def level_of(package: str) -> int:
    for level, packages in enumerate(LEVELS):
        if package in packages:
            return level
    raise AssertionError(f"package vllm.{package} has no place in LEVELS of {__file__}")


def imports(source: Source) -> Iterator[str]:
    """Modules of ours that it imports anywhere, for annotations too; repeated as they are."""
    for node in ast.walk(source.tree()):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "vllm")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            assert node.module is not None
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from dict.fromkeys(name if _is_module(name) else node.module for name in inner)


@cache
def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def device_words(source: Source) -> Iterator[str]:
    if source.path.startswith("vllm/platforms/"):
        return
    for number, line in enumerate(source.text.splitlines(), 1):
        if DEVICE_WORDS.search(line):
            yield f"{source.path}:{number}: {line.strip()}"


def environment_reads(source: Source) -> Iterator[str]:
    if source.path == "vllm/envs.py":
        return
    for node in ast.walk(source.tree()):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"):
            yield f"{source.path}:{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            for alias in node.names:
                if alias.name in ("environ", "getenv", "putenv"):
                    yield f"{source.path}:{node.lineno}: from os import {alias.name}"


def undeclared_variables(path: str, text: str, declared: Iterable[str]) -> Iterator[str]:
    """Variables that a page mentions and nothing reads."""
    for name in sorted(set(VARIABLE.findall(text)) - set(declared)):
        yield f"{path} mentions {name}, which vllm/envs.py does not declare"


def undocumented_variables(text: str, declared: Iterable[str]) -> Iterator[str]:
    for name in sorted(set(declared)):
        if not re.search(rf"\b{name}\b", text):
            yield f"{name} is not in the documentation"


def unread_fields(group: str, fields: Iterable[str], readers: Iterable[Source]) -> Iterator[str]:
    """Fields of a config that no code reads, as an attribute of `config`, `<group>` or the like."""
    name = group.replace(" ", "_")
    holders = {name, "config", f"{name}_config"}
    read = {
        node.attr
        for source in readers
        for node in ast.walk(source.tree())
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        if ast.unparse(node.value).rpartition(".")[2] in holders
    }
    for field in sorted(set(fields) - read):
        yield f"no code outside vllm/config reads {name}.{field}"


def unsafe_statements(source: Source) -> Iterator[str]:
    tree = source.tree()
    modules = _module_names(tree)
    for node in ast.walk(tree):
        where = f"{source.path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (f"{where}: {problem}" for problem in _assignment(target, modules))
        if isinstance(node, ast.ExceptHandler) and _swallows(node):
            yield f"{where}: an exception of any kind is swallowed"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield from (f"{where}: {problem}" for problem in _probing(node))


def _assignment(target: ast.expr, modules: set[str]) -> Iterator[str]:
    if not isinstance(target, ast.Attribute):
        return
    if target.attr == "__class__":
        yield "assigns __class__"
    if isinstance(target.value, ast.Name) and target.value.id in modules:
        yield f"assigns {ast.unparse(target)}, an attribute of another module"


def _module_names(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {
                alias.asname or alias.name
                for alias in node.names
                if _is_module(f"{node.module}.{alias.name}")
            }
    return names


def _swallows(handler: ast.ExceptHandler) -> bool:
    is_broad = handler.type is None or ast.unparse(handler.type) in ("Exception", "BaseException")
    return is_broad and all(isinstance(statement, ast.Pass) for statement in handler.body)


def _probing(call: ast.Call) -> Iterator[str]:
    assert isinstance(call.func, ast.Name)
    if call.func.id == "hasattr":
        yield f"{ast.unparse(call)}: ask a declared interface instead"
    if call.func.id == "getattr" and len(call.args) == 3:
        default = call.args[2]
        if isinstance(default, ast.Constant) and default.value is None:
            yield f"{ast.unparse(call)}: ask a declared interface instead"


_WAITS = frozenset({"wait_for", "wait", "join", "get", "result", "communicate"})


def hasty_tests(source: Source) -> Iterator[str]:
    """Judgements by the clock: they fail when other processes have the cores (tests/limits.py).

    A limit that is meant to pass has a name.
    """
    for node in ast.walk(source.tree()):
        hasty = ""
        if isinstance(node, ast.Assert) and _is_upper_bound_of_time(node.test):
            hasty = "asserts that little time has passed"
        elif isinstance(node, ast.Call):
            limits = [k.value for k in node.keywords if k.arg == "timeout"]
            if isinstance(node.func, ast.Attribute) and node.func.attr in _WAITS:
                limits += node.args[-1:] if node.func.attr == "wait_for" else node.args[:1]
            if any(_is_short(limit) for limit in limits):
                hasty = "waits with a limit of its own"
        if hasty:
            yield f"{source.path}:{node.lineno}: {hasty}"


def _is_upper_bound_of_time(test: ast.expr) -> bool:
    """Whether `clock() - start` is what a comparison says to be less than something."""
    if not isinstance(test, ast.Compare):
        return False
    sides = [test.left, *test.comparators]
    smaller = [
        left if isinstance(op, ast.Lt | ast.LtE) else right
        for left, op, right in zip(sides, test.ops, sides[1:], strict=False)
        if isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE)
    ]
    clocks = ("monotonic()", "perf_counter()", "time.time()")
    return any(
        isinstance(side, ast.BinOp)
        and isinstance(side.op, ast.Sub)
        and ast.unparse(side.left).endswith(clocks)
        for side in smaller
    )


def _is_short(limit: ast.expr) -> bool:
    """Whether it is a number of seconds that a busy machine may need."""
    return (
        isinstance(limit, ast.Constant) and type(limit.value) in (int, float) and limit.value < 60
    )
