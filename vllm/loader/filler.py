"""Fills a model with the tensors of a checkpoint, and accounts for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from vllm.errors import LoadError
from vllm.layers.weights import ELSEWHERE, PLAIN_DTYPES, WHOLE, Destination, Loadable
from vllm.loader.rules import Route, RuleTable

MAX_NAMES = 6  # listed in an error
_WIDER = (*PLAIN_DTYPES[:2], *PLAIN_DTYPES[3:])  # than float16
Key = tuple[str, str, int]  # parameter, part, expert


class Filler:
    """Fills a model's layers tensor by tensor; finishes each when its last tensor is in.

    `finish` fails unless all were filled. A model may be filled again by another Filler: its layers
    keep their memory.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: RuleTable,
        dtype: torch.dtype = torch.float32,
        fills: bool = True,
        is_elsewhere: Callable[[str], bool] = lambda parameter: False,
    ) -> None:
        """`dtype` is the one that plain weights are converted to.

        Without `fills` it only checks whether the tensors fit. `is_elsewhere`: parameters, by path,
        that other stages of the pipeline have.
        """
        self._is_elsewhere = is_elsewhere
        self._dtype = dtype
        self._fills = fills
        self._rules = rules
        self._destinations: dict[Key, Destination] = {}
        self._owners: dict[Key, Loadable] = {}  # of what is not filled yet
        self._missing: dict[Loadable, int] = {}  # tensors, by layer
        for path, layer in loadable_layers(model):
            self._register(path, layer)
        self._num_experts = max((expert for *_, expert in self._destinations), default=-1) + 1
        self._unknown: list[str] = []

    def _register(self, path: str, layer: Loadable) -> None:
        self._missing[layer] = 0
        for destination in layer.destinations():
            parameter = f"{path}.{destination.parameter}" if path else destination.parameter
            key = (parameter, destination.part, destination.expert)
            self._destinations[key] = destination
            if destination.open is not ELSEWHERE:
                self._owners[key] = layer
                self._missing[layer] += 1

    def run(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Add all `tensors` and finish. Raises LoadError."""
        for name, tensor in tensors:
            self.add(name, tensor)
        self.finish()

    def add(self, name: str, tensor: Tensor) -> None:
        """Copy `tensor` to where it belongs. Raises LoadError if its shape does not fit.

        If a name comes twice, the first tensor counts.
        """
        if self._rules.ignores(name):
            return
        route = self._rules.route(name)
        if route is None:
            self._unknown.append(name)
            return
        if self._is_elsewhere(route.parameter):
            return
        keys = list(self._targets(route))
        if any(key not in self._destinations for key in keys):
            self._unknown.append(name)
            return
        self._check(name, tensor, route, keys)
        for key, piece in zip(keys, self._pieces(route, keys, tensor), strict=True):
            layer = self._owners.pop(key, None)
            if layer is not None and self._fills:
                destination = self._destinations[key]
                self._check_range(name, destination.share.of(piece))
                destination.fill(piece)
                self._missing[layer] -= 1
                if not self._missing[layer]:
                    layer.finish()

    def finish(self) -> None:
        """Raises LoadError that lists parameters left empty and tensors left over."""
        problems = []
        if self._owners:
            problems.append("no tensor for " + _listed(_readable(p) for p in self._owners))
        if self._unknown:
            problems.append("no place for " + _listed(self._unknown))
        if problems:
            raise LoadError(
                f"the checkpoint does not fit the model its config.json names: "
                f"{'; '.join(problems)}. Check that all files are there and belong together, or "
                "try --model-impl transformers."
            )

    def _check(self, name: str, tensor: Tensor, route: Route, keys: Sequence[Key]) -> None:
        wanted = self._source_shape(route, keys)
        if tuple(tensor.shape) != wanted:
            raise LoadError(
                f"tensor {name!r} has shape {list(tensor.shape)} in the checkpoint, but by "
                f"config.json it has {list(wanted)}. The checkpoint and its config do not belong "
                "together, or --hf-overrides changes a size."
            )
        dtypes = self._destinations[keys[0]].dtypes
        if tensor.dtype not in dtypes:
            raise LoadError(_wrong_dtype(name, tensor.dtype, dtypes))

    def _check_range(self, name: str, tensor: Tensor) -> None:
        # Only this one has a range that values of the others can leave.
        if self._dtype is not torch.float16 or tensor.dtype not in _WIDER:
            return
        limit = torch.finfo(torch.float16).max
        low, high = (float(bound) for bound in torch.aminmax(tensor)) if tensor.numel() else (0, 0)
        if max(-low, high) > limit:
            raise LoadError(
                f"tensor {name!r} has values up to {max(-low, high):g} in the checkpoint, which is "
                f"in {str(tensor.dtype).removeprefix('torch.')}; float16 ends at {limit:g}, beyond "
                "which they would be infinite. Use --dtype bfloat16 or float32."
            )

    def _targets(self, route: Route) -> Iterator[Key]:
        experts = range(self._num_experts) if route.all_experts else (route.expert,)
        for expert in experts:
            for part in route.parts:
                yield route.parameter, part, expert

    def _source_shape(self, route: Route, keys: Sequence[Key]) -> tuple[int, ...]:
        pieces = [self._destinations[key] for key in keys[: len(route.parts)]]
        shape, dim = list(pieces[0].shape), pieces[0].stack_dim
        if shape and dim != WHOLE:
            shape[dim] = sum(piece.shape[dim] for piece in pieces)
        return (self._num_experts, *shape) if route.all_experts else tuple(shape)

    def _pieces(self, route: Route, keys: Sequence[Key], tensor: Tensor) -> Iterator[Tensor]:
        pieces = [self._destinations[key] for key in keys[: len(route.parts)]]
        for one in tensor.unbind(0) if route.all_experts else (tensor,):
            dim = pieces[0].stack_dim
            if len(pieces) == 1 or dim == WHOLE:
                yield from [one] * len(pieces)
            else:
                yield from one.split([piece.shape[dim] for piece in pieces], dim)


def loadable_layers(model: nn.Module) -> Iterator[tuple[str, Loadable]]:
    """Every layer with weights of its own, by path."""
    for path, module in model.named_modules():
        if isinstance(module, Loadable):
            yield path, module


def _wrong_dtype(name: str, dtype: torch.dtype, accepted: Sequence[torch.dtype]) -> str:
    if accepted == PLAIN_DTYPES:
        return (
            f"tensor {name!r} is {dtype} in the checkpoint: quantized weights need a "
            "quantization_config in config.json that names their format. Use a checkpoint with "
            "one, or one in float32, bfloat16 or float16."
        )
    wanted = " or ".join(map(str, accepted))
    return (
        f"tensor {name!r} is {dtype} in the checkpoint, but by the quantization_config of "
        f"config.json it is {wanted}. The checkpoint and its config do not belong together."
    )


def _readable(key: Key) -> str:
    parameter, part, expert = key
    extras = [f"part {part}"] if part else []
    extras += [f"expert {expert}"] if expert >= 0 else []
    return parameter + (f" ({', '.join(extras)})" if extras else "")


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - MAX_NAMES} more" if len(found) > MAX_NAMES else ""
    return ", ".join(found[:MAX_NAMES]) + more
