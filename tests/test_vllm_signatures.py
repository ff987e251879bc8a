"""What docs/compatibility.md calls "same" is called as vLLM's is."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import typing_extensions as te

from tests.architecture.test_compatibility import rows
from tests.vllm_signatures import ENGINE_ARGS, LLM_KEYWORDS, SIGNATURES
from vllm import LLM
from vllm.config import legacy, unavailable
from vllm.config.vllm import all_settings
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs

P = inspect.Parameter
# Of the rows that are "same" those with nothing to call, or whose parts are in the table.
NOT_CALLED = {
    "vllm.inputs.PromptType",
    "vllm.logprobs.PromptLogprobs",
    "vllm.logprobs.SampleLogprobs",
    "vllm.sampling_params.RequestOutputKind",
    "vllm.v1.engine.exceptions.EngineDeadError",
    "vllm.version.__version__",
}


def found(path: str) -> Any:
    """What is at a path of modules, then attributes."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[length:], thing)
    raise AssertionError(path)


def signature_of(text: str) -> inspect.Signature:
    function: Callable[..., Any] = eval(f"lambda {' '.join(text.split())}: None")
    return inspect.signature(function)


def ours(path: str) -> inspect.Signature:
    thing = found(path)
    if te.is_typeddict(thing):
        hints = te.get_type_hints(thing, include_extras=True)
        defaults = {
            n: None if te.get_origin(h) is te.NotRequired else P.empty for n, h in hints.items()
        }
        return inspect.Signature([P(n, P.KEYWORD_ONLY, default=d) for n, d in defaults.items()])
    signature = inspect.signature(thing)
    owner = found(path.rpartition(".")[0])
    is_method = inspect.isclass(owner) and inspect.isfunction(thing)
    if not is_method:
        return signature
    first, *rest = signature.parameters.values()
    assert first.name == "self", (path, first)
    return signature.replace(parameters=rest)


@pytest.mark.parametrize("path", SIGNATURES)
def test_it_is_called_as_vllms_is(path: str) -> None:
    theirs, mine = signature_of(SIGNATURES[path]), ours(path)
    wanted = [p for p in theirs.parameters.values() if p.kind is not P.VAR_POSITIONAL]
    # By position: each value arrives under the same name.
    positional = [p.name for p in wanted if p.kind is P.POSITIONAL_OR_KEYWORD]
    required = {
        p.name: object() for p in wanted if p.default is P.empty and p.kind is P.KEYWORD_ONLY
    }
    swallowed = {p.name for p in mine.parameters.values() if p.kind is P.VAR_POSITIONAL}
    bound = mine.bind(*positional, **required).arguments
    if not swallowed:
        assert {name: bound[name] for name in positional} == {name: name for name in positional}
    # By name: all of them at once, and as few as there may be.
    mine.bind(**{p.name: object() for p in wanted})
    mine.bind(**{p.name: object() for p in wanted if p.default is P.empty})
    for parameter in wanted:
        own = mine.parameters.get(parameter.name)
        if parameter.default in (P.empty, ...) or own is None:
            continue
        assert own.default == parameter.default, parameter.name


def test_every_row_that_is_the_same_is_tried() -> None:
    same = {path for path, status in rows("Python").items() if status == "same"}
    tried = {path for row in same for path in SIGNATURES if path == row or _is_part(path, row)}
    untried = {row for row in same if not any(p == row or _is_part(p, row) for p in tried)}
    classes_by_other_names = {
        row for row in untried if any(found(row) is found(_owner(path)) for path in SIGNATURES)
    }
    assert untried - classes_by_other_names == NOT_CALLED | ARGS


ARGS = {
    "vllm.utils.FlexibleArgumentParser",  # as argparse's
    "vllm.utils.argparse_utils.FlexibleArgumentParser",
}


def _is_part(path: str, row: str) -> bool:
    return path.startswith(f"{row}.")


def _owner(path: str) -> str:
    """The class of a method; any other path is its own."""
    parent = path.rpartition(".")[0]
    return parent if inspect.isclass(found(parent)) else path


def test_llm_takes_vllms_keywords_with_vllms_defaults() -> None:
    theirs = signature_of(LLM_KEYWORDS)
    given = {n: p.default for n, p in theirs.parameters.items() if p.default is not P.empty}
    inspect.signature(LLM).bind("m", **given)
    values = EngineArgs(model="m", **given).values()
    for setting in all_settings():
        setting.check(values[setting.name])
    unavailable.check_all(values)
    assert set(legacy.given(values)) == set()


def test_engine_args_have_vllms_fields() -> None:
    values = AsyncEngineArgs().values()
    assert [name for name in ENGINE_ARGS if name not in values] == []


def test_engine_args_with_vllms_positional_model() -> None:
    assert EngineArgs("m").model == EngineArgs(model="m").model == "m"
