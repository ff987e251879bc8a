"""The rules that map checkpoint names to parameters, compiled; and read backwards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm.layers.shapes import Piece
from vllm.layers.weights import Rule

# Tensors that checkpoints carry and nobody needs: they follow from the config.
USELESS = (
    r".*rotary_emb\.inv_freq",
    r".*rotary_emb\.(cos|sin)_cached",
    r".*\.attn\.(bias|masked_bias)",
)
# What a field of a rule matches: a component, anything, or (any other name) a number.
FIELDS = {"w": r"[^.]+", "any": r".+"}
DIGITS = r"\d+"
_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Route:
    """Where one checkpoint tensor goes: `parts` are stacked in it; expert -1 is no expert."""

    parameter: str
    parts: tuple[str, ...]
    expert: int
    all_experts: bool


class RuleTable:
    """The rules of a model, compiled."""

    def __init__(self, rules: Sequence[Rule], ignored: Sequence[str]) -> None:
        self._rules = [(re.compile(_pattern(rule.source)), rule) for rule in rules]
        self._backwards = [
            (re.compile(_pattern(rule.parameter)), rule) for rule in rules if not rule.all_experts
        ]
        self._ignored = re.compile("|".join(f"(?:{p})" for p in (*USELESS, *ignored)))

    def ignores(self, name: str) -> bool:
        return self._ignored.fullmatch(name) is not None

    def route(self, name: str) -> Route | None:
        """None if no rule knows the name."""
        for pattern, rule in self._rules:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            fields = match.groupdict()
            expert = int(fields.pop("expert", -1))
            return Route(rule.parameter.format(**fields), rule.parts, expert, rule.all_experts)
        return None

    def module_names(self, path: str, piece: Piece) -> tuple[str, ...]:
        """Checkpoint modules that `piece` of the layer at `path` may come from.

        Most have one; models whose checkpoints exist under several names have several.
        """
        return tuple(dict.fromkeys(self._module_names(path, piece)))

    def _module_names(self, path: str, piece: Piece) -> Iterator[str]:
        wanted = f"{path}.{piece.prefix}weight"
        for pattern, rule in self._backwards:
            match = pattern.fullmatch(wanted)
            if match is None or piece.part not in rule.parts:
                continue
            fields = {"w": "weight", "expert": piece.expert, **match.groupdict()}
            source = rule.source.format(**fields)
            if source.endswith(_WEIGHT):
                yield source.removesuffix(_WEIGHT)


def _pattern(template: str) -> str:
    """`template` as a regular expression with one named group per field."""

    def group(match: re.Match[str]) -> str:
        name = match[1]
        return rf"(?P<{name}>{FIELDS.get(name, DIGITS)})"

    return re.sub(r"\\\{(\w+)\\\}", group, re.escape(template))
