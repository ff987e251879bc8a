"""What is done in the process of each rank: its memory, and what its steps launch.

Functions are given to `collective_rpc`, worker types to an executor.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from vllm.config.vllm import VllmConfig
from vllm.device.launch import Launch
from vllm.device.observer import StepObserver, observer_of
from vllm.distributed.place import Place
from vllm.layers.moe import BalancedExperts
from vllm.platforms.hpu.graphs import HpuGraphRunner, named
from vllm.worker.model_runner import ModelRunner
from vllm.worker.worker import Worker

MEMORIES = "TEST_MEMORIES"  # by rank, separated by commas
FULL_RANK = "TEST_FULL_RANK"  # whose memory is taken while it captures its second graph


class Unequal(Worker):
    """A rank whose device has a size of its own."""

    def __init__(self, config: VllmConfig, place: Place) -> None:
        # Before the plugin is imported, which reads it.
        os.environ["HPU_EMULATOR_MEMORY"] = os.environ[MEMORIES].split(",")[place.rank]
        if os.environ.get(FULL_RANK) == str(place.rank):
            ModelRunner.rehearse = _in_little_memory  # type: ignore[method-assign]
        super().__init__(config, place)


_rehearse = ModelRunner.rehearse
_captures = 0


def _in_little_memory(
    runner: ModelRunner, launch: Launch, ends_all_ways: bool = False, captures: bool = False
) -> None:
    global _captures
    _captures += captures
    with _ballast() if captures and _captures == 2 else ExitStack():
        _rehearse(runner, launch, ends_all_ways, captures)


@contextmanager
def _ballast() -> Iterator[None]:
    """A few bytes are left, as another process on the device would leave."""
    import torch

    free = torch.hpu.mem_get_info()[0]
    held = torch.empty(free - 4096, dtype=torch.uint8, device="hpu")
    yield
    del held


class Recorder(StepObserver):
    """Every launch with all that its shape and its place depend on; rehearsals are none."""

    def __init__(self) -> None:
        self.launches: list[str] = []
        self.draws = 0

    def launch_begins(self, launch: Launch) -> None:
        arrays = (launch.plan_rows_np, launch.slots_np, launch.starts_np, launch.counts_np)
        self.launches.append(f"{launch.key} {[array.tolist() for array in arrays]}")

    def drawing_begins(self, launch: Launch) -> None:
        self.draws += 1


_recorder = Recorder()
_forbidding = ExitStack()
_before: Any = None
_placements: list[list[list[int]]] = []


class Recorded(Worker):
    """A rank whose launches are recorded."""

    def __init__(self, config: VllmConfig, place: Place) -> None:
        super().__init__(config, place)
        self.observe(_recorder)


def begin(worker: Worker) -> None:
    """From now on nothing may be compiled or waited for."""
    global _before, _placements
    from hpu_emulator import counters, strict

    _placements = placements(worker)

    _before = counters.snapshot()
    _forbidding.enter_context(strict.strict("no_sync", "no_compile"))


def end(worker: Worker) -> dict[str, Any]:
    """What happened since, and all launches."""
    from hpu_emulator import counters

    _forbidding.close()
    return {
        "seen": _recorder.launches,
        "draws": _recorder.draws,
        "moved": placements(worker) != _placements,
        **asdict(counters.since(_before)),
    }


class ShapeRecorder(StepObserver):
    """What is the same on all ranks that launch together, and which launches have no rows."""

    def __init__(self) -> None:
        self.shapes: list[str] = []
        self.num_dummies = 0

    def launch_begins(self, launch: Launch) -> None:
        self.shapes.append(str(launch.key))
        self.num_dummies += not len(launch.plan_rows_np)


_shapes = ShapeRecorder()


def begin_in_any_process(worker: Worker) -> None:
    """As `begin`, and launches are recorded from now on."""
    worker.runner.observer = observer_of([worker.runner.observer, _shapes])
    begin(worker)


def end_of_shapes(worker: Worker) -> dict[str, Any]:
    return {**end(worker), "shapes": _shapes.shapes, "num_dummies": _shapes.num_dummies}


def placements(worker: Worker) -> list[list[list[int]]]:
    """Of each layer with experts that move, which each rank has."""
    layers = worker.get_model().modules()
    found = [layer.placement.held for layer in layers if isinstance(layer, BalancedExperts)]
    return copy.deepcopy(found)


def captured(worker: Worker) -> list[str]:
    """The shapes that have a graph."""
    graphs = worker.runner.graphs
    assert isinstance(graphs, HpuGraphRunner), graphs
    return sorted(map(named, graphs.captured))
