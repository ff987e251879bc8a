"""Experts are counted as they are chosen, and move between ranks while these serve.

All ranks take the same steps, and plan by the same counts in whole numbers. So each knows in which
step what moves, without a word about it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vllm.config.expert_balance import ExpertBalanceConfig
from vllm.device.collectives import Collectives
from vllm.device.device import Device, HostCopy
from vllm.layers.expert_placement import Move, Spot, moves
from vllm.layers.moe import BalancedExperts
from vllm.logger import init_logger

logger = init_logger(__name__)

Counts = npt.NDArray[np.int64]  # of all layers, one after the other

_STEP_BYTES: Final = 256 << 20  # that move between two steps, at most, but for one move
_STEPS_PER_READ: Final = 1000  # at most: the device counts in 32 bits
_FLOAT8: Final = (torch.float8_e4m3fn, torch.float8_e5m2)


class NoBalance:
    """Experts stay where they are."""

    def rehearse(self) -> None:
        """Do on the device what `step_ends` may; for warm-up, on all ranks alike."""

    def begin(self) -> None:
        """Requests come: nothing counts that was before."""

    def step_ends(self, num_launches: int) -> None:
        """A step has queued so many launches, as many as on all ranks that have the experts."""


@dataclass(frozen=True, slots=True)
class _Read:
    """Counts on their way to the host."""

    step: int  # the last one that is counted
    copy: HostCopy


class ExpertBalance(NoBalance):
    """Of one rank. Owns the counts of its layers on the device, and moves their experts."""

    def __init__(
        self,
        layers: Sequence[BalancedExperts],
        ranks: Collectives,
        device: Device,
        config: ExpertBalanceConfig,
        depth: int,
    ) -> None:
        """`ranks`: those that have the experts. `depth`: steps in flight."""
        self._layers = layers
        self._ranks = ranks
        self._device = device
        self._config = config
        self._window = config.window_size
        self._depth = depth
        self._ends = np.cumsum([layer.no_expert + 1 for layer in layers])
        self._step = self._last_read = 0
        self._reads: deque[_Read] = deque()
        self._total: Counts = np.zeros(self._ends[-1], np.int64)
        self._logged = self._total.copy()
        # Totals at the beginnings of windows that have not ended.
        self._begun: deque[tuple[int, Counts]] = deque([(0, self._total.copy())])
        self._waiting: deque[tuple[BalancedExperts, Counts]] = deque()  # layers, with their loads
        self._moves: deque[Move] = deque()  # of the layer that moves
        self._num_transfers = 0

    @torch.inference_mode()
    def rehearse(self) -> None:
        self._device.step_boundary()
        self._read().wait()
        shapes = set()
        for layer in self._layers:
            shape = tuple((tensor.shape, tensor.dtype) for tensor in layer.stored())
            if shape in shapes:
                continue
            shapes.add(shape)
            for rank in range(self._ranks.size):
                # Every rank writes to itself once what it sends to all.
                self._transfer(layer, [(Spot(rank, 0), Spot(rank, 0))])
            self._write_table(layer)

    @torch.inference_mode()
    def begin(self) -> None:
        for layer in self._layers:
            layer.counts.zero_()
        self._device.step_boundary()

    def step_ends(self, num_launches: int) -> None:
        if not num_launches:
            return
        self._step += 1
        # As many steps later the host has it, and waits for nothing.
        while self._reads and self._reads[0].step + self._depth <= self._step:
            read = self._reads.popleft()
            self._take(read.step, read.copy.wait())
        self._move_some()
        if self._is_read_now():
            self._reads.append(_Read(self._step, self._read()))
            self._last_read = self._step

    def _is_read_now(self) -> bool:
        config, step = self._config, self._step
        return (
            step % config.step_interval == 0
            or self._begins_window(step)
            or self._is_logged(step)
            or step - self._last_read >= _STEPS_PER_READ
        )

    def _begins_window(self, step: int) -> bool:
        return (step + self._window) % self._config.step_interval == 0

    def _is_logged(self, step: int) -> bool:
        config = self._config
        return config.log_balancedness and step % config.log_balancedness_interval == 0

    def _read(self) -> HostCopy:
        counts = torch.cat([layer.counts for layer in self._layers])
        self._device.step_boundary()
        # All ranks have counted the same, if their processors choose alike: the first one decides.
        counts = self._ranks.broadcast(counts, 0)
        copy = self._device.download(counts)
        for layer in self._layers:
            layer.counts.zero_()
        self._device.step_boundary()
        return copy

    def _take(self, step: int, counts: np.ndarray) -> None:
        """`counts` of the steps since the last ones, up to `step`."""
        self._total += counts
        if self._is_logged(step):
            self._log(step)
        if self._begins_window(step):
            self._begun.append((step, self._total.copy()))
        if step % self._config.step_interval == 0:
            while len(self._begun) > 1 and self._begun[1][0] <= step - self._window:
                self._begun.popleft()
            loads = self._by_layer(self._total - self._begun[0][1])
            # What is left of older moves goes by loads that are outdated.
            self._moves.clear()
            self._waiting = deque(zip(self._layers, loads, strict=True))

    def _by_layer(self, counts: Counts) -> list[Counts]:
        """Of each layer how often its experts were chosen."""
        return [some[:-1] for some in np.split(counts, self._ends[:-1])]

    def _log(self, step: int) -> None:
        """How busy ranks were since the last line. Ranks wait for the busiest in every layer."""
        mean = greatest = 0.0
        loads = self._by_layer(self._total - self._logged)
        for layer, load in zip(self._layers, loads, strict=True):
            ranks = layer.placement.rank_loads(load)
            mean += float(ranks.mean())
            greatest += float(ranks.max())
        self._logged = self._total.copy()
        if greatest and self._ranks.rank == 0:
            logger.info(
                "Expert load after step %d: on average a rank has %.3f of what the busiest has",
                step,
                mean / greatest,
            )

    def _move_some(self) -> None:
        """Of one layer, between two steps, so that none waits for long."""
        if not self._moves:
            if not self._waiting:
                return
            self._moves.extend(moves(self._waiting[0][0].placement, self._waiting[0][1]))
        layer, _ = self._waiting[0]
        left = _STEP_BYTES
        expert_bytes = sum(tensor[0].nbytes for tensor in layer.stored())
        if self._moves:
            while self._moves and (left == _STEP_BYTES or left >= 2 * expert_bytes):
                move = self._moves.popleft()
                pairs = [(move.source, move.target), (move.target, move.source)]
                self._transfer(layer, pairs[: move.num_transfers])
                layer.note(move)
                self._num_transfers += move.num_transfers
                left -= move.num_transfers * expert_bytes
            self._write_table(layer)
        if not self._moves:
            self._waiting.popleft()
            self._tell_of_moves()

    def _tell_of_moves(self) -> None:
        if self._waiting or not self._num_transfers:
            return
        if self._ranks.rank == 0:
            logger.info(
                "Step %d: %d experts have moved to other ranks", self._step, self._num_transfers
            )
        self._num_transfers = 0

    def _transfer(self, layer: BalancedExperts, pairs: Iterable[tuple[Spot, Spot]]) -> None:
        """Write what is in the first spot of each pair to the second one; all are sent before.

        By broadcasts, whose shape does not depend on what goes where, and each op by itself:
        devices compile by shapes, and what ranks queue together.
        """
        own = self._ranks.rank
        for stored in layer.stored():
            tensor = stored.view(torch.int8) if stored.dtype in _FLOAT8 else stored
            rows: list[tuple[Spot, Tensor]] = []
            for source, target in pairs:
                index = self._index(source.place if source.rank == own else 0)
                row = tensor.index_select(0, index)
                self._device.step_boundary()
                rows.append((target, self._ranks.broadcast(row, source.rank)))
                self._device.step_boundary()
            for target, row in rows:
                if target.rank == own:
                    tensor.index_copy_(0, self._index(target.place), row)
                    self._device.step_boundary()

    def _index(self, place: int) -> Tensor:
        return self._device.upload(np.array([place], np.int64))

    def _write_table(self, layer: BalancedExperts) -> None:
        """In place: graphs know its address."""
        layer.local_ids.copy_(self._device.upload(layer.table()))
        self._device.step_boundary()


def expert_balance(
    model: nn.Module, ranks: Collectives, device: Device, config: ExpertBalanceConfig, depth: int
) -> NoBalance:
    """What moves the experts of `model`; arguments as of ExpertBalance."""
    layers = [layer for layer in model.modules() if isinstance(layer, BalancedExperts)]
    return ExpertBalance(layers, ranks, device, config, depth) if layers else NoBalance()
