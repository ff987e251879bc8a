"""Packages of vllm from high to low: their lines, and what they import, annotations included.

`python tools/imports.py` in the root of the repository; nothing has to be installed. It marks and
lists imports against the levels of tests/architecture/rules.py, and lists modules that import each
other in a circle. The exit status is 1 if there are any.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.architecture import rules

MARK = "!"


def table(sources: Sequence[rules.Source]) -> Iterator[str]:
    """A line per package: level, name, lines, and how many of its imports go to which package."""
    lines: Counter[str] = Counter()
    arrows: dict[str, Counter[str]] = {}
    wrong: set[tuple[str, str]] = set()
    for source in sources:
        mine = rules.package_of(source.module)
        lines[mine] += source.text.count("\n")
        for target in set(rules.imports(source)):
            theirs = rules.package_of(target)
            if not mine or not theirs or mine == theirs:
                continue
            arrows.setdefault(mine, Counter())[theirs] += 1
            if rules.import_problem(source.module, target):
                wrong.add((mine, theirs))
    yield f"{'level':>5}  {'package':<22}{'lines':>6}  imports"
    for level, packages in reversed(list(enumerate(rules.LEVELS))):
        for package in packages:
            found = sorted(
                arrows.get(package, Counter()).items(),
                key=lambda item: (-rules.level_of(item[0]), item[0]),
            )
            shown = ", ".join(
                f"{MARK if (package, name) in wrong else ''}{name} {count}" for name, count in found
            )
            yield f"{level:>5}  {package:<22}{lines[package]:>6}  {shown}".rstrip()


def main() -> int:
    sources = rules.sources("vllm")
    problems = [problem for source in sources for problem in rules.wrong_imports(source)]
    problems += [f"a circle: {circle}" for circle in rules.circles(sources)]
    print(*table(sources), "", sep="\n")
    print(*problems or ["No import goes up, and none goes round."], sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
