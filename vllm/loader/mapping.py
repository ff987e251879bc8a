"""Routes checkpoint tensors to the places that models declare, and accounts for each of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vllm.errors import LoadError
from vllm.layers.weights import Loadable, Rule, Slot

# Tensors that checkpoints carry and nobody needs: they follow from the config.
USELESS = (
    r".*rotary_emb\.inv_freq",
    r".*rotary_emb\.(cos|sin)_cached",
    r".*\.attn\.(bias|masked_bias)",
)
# What a field of a rule matches: a component, anything, or (any other name) a number.
FIELDS = {"w": r"[^.]+", "any": r".+"}
DIGITS = r"\d+"
# Others are quantized values, which mean something only together with their scales.
PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_NAMES = 6  # listed in an error
Place = tuple[str, str, int]  # parameter, part, expert


@dataclass(frozen=True, slots=True)
class Route:
    """Where one checkpoint tensor goes: `parts` are stacked in it; expert -1 is no expert."""

    parameter: str
    parts: tuple[str, ...]
    expert: int
    all_experts: bool


class Router:
    """The rules of a model, compiled."""

    def __init__(self, rules: Sequence[Rule], ignored: Sequence[str]) -> None:
        self._rules = [(re.compile(_pattern(rule.source)), rule) for rule in rules]
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


def _pattern(source: str) -> str:
    """`source` as a regular expression with one named group per field."""

    def group(match: re.Match[str]) -> str:
        name = match[1]
        return rf"(?P<{name}>{FIELDS.get(name, DIGITS)})"

    return re.sub(r"\\\{(\w+)\\\}", group, re.escape(source))


def _places(model: nn.Module) -> Iterator[tuple[Place, Slot]]:
    for path, module in model.named_modules():
        if isinstance(module, Loadable):
            for slot in module.slots():
                parameter = f"{path}.{slot.parameter}" if path else slot.parameter
                yield (parameter, slot.part, slot.expert), slot


class Filler:
    """Fills a model's parameters tensor by tensor; `finish` fails unless all were filled."""

    def __init__(
        self,
        model: nn.Module,
        rules: Sequence[Rule],
        ignored: Sequence[str],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` is the one that weights are converted to."""
        self._dtype = dtype
        self._slots = dict(_places(model))
        self._open = dict.fromkeys(self._slots)
        self._num_experts = max((expert for _, _, expert in self._slots), default=-1) + 1
        self._router = Router(rules, ignored)
        self._unknown: list[str] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Copy `tensor` to where it belongs. Raises LoadError if its shape does not fit."""
        if self._router.ignores(name):
            return
        route = self._router.route(name)
        if route is None:
            self._unknown.append(name)
            return
        places = list(self._targets(route))
        if any(place not in self._slots for place in places):
            self._unknown.append(name)
            return
        self._check(name, tensor, self._source_shape(route, places))
        for place, piece in zip(places, self._pieces(route, places, tensor), strict=True):
            slot = self._slots[place]
            slot.target.copy_(slot.local(piece))
            self._open.pop(place, None)

    def finish(self) -> None:
        """Raises LoadError that lists parameters left empty and tensors left over."""
        problems = []
        if self._open:
            problems.append("no tensor for " + _listed(_readable(p) for p in self._open))
        if self._unknown:
            problems.append("no place for " + _listed(self._unknown))
        if problems:
            raise LoadError(
                f"the checkpoint does not fit the model its config.json names: "
                f"{'; '.join(problems)}. Check that all files are there and belong together, or "
                "try --model-impl transformers."
            )

    def _check(self, name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != wanted:
            raise LoadError(
                f"tensor {name!r} has shape {list(tensor.shape)} in the checkpoint, but by "
                f"config.json it has {list(wanted)}. The checkpoint and its config do not belong "
                "together, or --hf-overrides changes a size."
            )
        if tensor.dtype not in PLAIN_DTYPES:
            raise LoadError(
                f"tensor {name!r} is {tensor.dtype} in the checkpoint: quantized weights are not "
                "supported. Use a checkpoint in float32, bfloat16 or float16."
            )
        # Only this one has a range that values of the others can leave.
        if self._dtype is torch.float16 and tensor.dtype is not torch.float16:
            self._check_range(name, tensor)

    def _check_range(self, name: str, tensor: Tensor) -> None:
        limit = torch.finfo(torch.float16).max
        low, high = (float(bound) for bound in torch.aminmax(tensor)) if tensor.numel() else (0, 0)
        if max(-low, high) > limit:
            raise LoadError(
                f"tensor {name!r} has values up to {max(-low, high):g} in the checkpoint, which is "
                f"in {str(tensor.dtype).removeprefix('torch.')}; float16 ends at {limit:g}, beyond "
                "which they would be infinite. Use --dtype bfloat16 or float32."
            )

    def _targets(self, route: Route) -> Iterator[Place]:
        experts = range(self._num_experts) if route.all_experts else (route.expert,)
        for expert in experts:
            for part in route.parts:
                yield route.parameter, part, expert

    def _source_shape(self, route: Route, places: Sequence[Place]) -> tuple[int, ...]:
        pieces = [self._slots[place].source_shape for place in places[: len(route.parts)]]
        rows = sum(piece[0] for piece in pieces) if pieces[0] else 0
        shape = (rows, *pieces[0][1:]) if pieces[0] else ()
        return (self._num_experts, *shape) if route.all_experts else shape

    def _pieces(self, route: Route, places: Sequence[Place], tensor: Tensor) -> Iterator[Tensor]:
        rows = [self._slots[place].source_shape[0] for place in places[: len(route.parts)]]
        for one in tensor.unbind(0) if route.all_experts else (tensor,):
            yield from one.split(rows) if len(rows) > 1 else (one,)


def _readable(place: Place) -> str:
    parameter, part, expert = place
    extras = [f"part {part}"] if part else []
    extras += [f"expert {expert}"] if expert >= 0 else []
    return parameter + (f" ({', '.join(extras)})" if extras else "")


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - MAX_NAMES} more" if len(found) > MAX_NAMES else ""
    return ", ".join(found[:MAX_NAMES]) + more
