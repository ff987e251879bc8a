"""torch.profiler with events of the device."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from hpu_emulator import _C, recipes
from torch.profiler import ProfilerActivity

_PID = "HPU"
_TorchProfile = torch.profiler.profile


class DebugActivity(Enum):
    SYNAPSE_FUNCTION_CALLS = 1
    BRIDGE_FUNCTION_CALLS = 2


class HpuProfile(_TorchProfile):
    """A profile whose exported trace has an event per launch of a recipe on the device."""

    def __init__(
        self,
        *,
        activities: Iterable[ProfilerActivity] | None = None,
        debug_activities: Iterable[DebugActivity] = (),
        **options: Any,
    ) -> None:
        chosen = {ProfilerActivity.CPU, ProfilerActivity.HPU} if activities is None else activities
        wanted = set(chosen)
        self._debug = frozenset(debug_activities)
        self._sees_device = ProfilerActivity.HPU in wanted
        if not all(isinstance(activity, DebugActivity) for activity in self._debug):
            raise ValueError(f"debug_activities are of DebugActivity, not {debug_activities}")
        if self._debug and not self._sees_device:
            raise ValueError("debug_activities need ProfilerActivity.HPU among the activities")
        # The device's events are the emulator's own: the profiler of the host knows no HPU.
        host = (wanted - {ProfilerActivity.HPU}) or {ProfilerActivity.CPU}
        self._launches: list[tuple[int, str, int, bool, int, int]] = []
        super().__init__(activities=host, **options)

    def start_trace(self) -> None:
        super().start_trace()
        if self._sees_device:
            _C.set_timeline_enabled(True)

    def stop_trace(self) -> None:
        if self._sees_device:
            _C.flush()
            self._launches = _C.take_timeline()
            _C.set_timeline_enabled(False)
        super().stop_trace()

    def export_chrome_trace(self, path: str) -> Any:
        result = super().export_chrome_trace(path)
        if self._sees_device:
            _add_events(Path(path), self._events())
        return result

    def _events(self) -> Iterable[dict[str, Any]]:
        for index, name in enumerate(("recipes", "synapse", "bridge")):
            yield _metadata(index, name)
        for recipe, mode, num_ops, is_new, begin_ns, end_ns in self._launches:
            made = _name(recipe, mode)
            args = {"recipe": recipe, "mode": mode, "ops": num_ops, "compiled": is_new}
            yield _event(made, 0, begin_ns, end_ns, args)
            if DebugActivity.SYNAPSE_FUNCTION_CALLS in self._debug:
                if is_new:
                    yield _event("synGraphCompile", 1, end_ns, end_ns, args)
                yield _event("synLaunch", 1, end_ns, end_ns, args)
            if DebugActivity.BRIDGE_FUNCTION_CALLS in self._debug:
                yield _event(f"bridge::{mode}::launch", 2, begin_ns, end_ns, args)


def _name(recipe: int, mode: str) -> str:
    found = recipes.find(recipe)
    return f"recipe {recipe}" if found is None else f"recipe {recipe}: {found.name()}"


def _metadata(thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "thread_name", "pid": _PID, "tid": thread, "args": {"name": name}}


def _event(
    name: str, thread: int, begin_ns: int, end_ns: int, args: dict[str, Any]
) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": "kernel",
        "name": name,
        "pid": _PID,
        "tid": thread,
        "ts": begin_ns / 1000,
        "dur": max(1, end_ns - begin_ns) / 1000,
        "args": args,
    }


def _add_events(path: Path, events: Iterable[dict[str, Any]]) -> None:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        trace = json.load(file)
    # Times of the trace are relative to a base of its own.
    base_us = float(trace.get("baseTimeNanoseconds", 0)) / 1000
    for event in events:
        if "ts" in event:
            event["ts"] -= base_us
        trace["traceEvents"].append(event)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    writes = gzip.open if path.suffix == ".gz" else open
    with writes(temporary, "wt", encoding="utf-8") as file:
        json.dump(trace, file)
    temporary.replace(path)


def register() -> None:
    """torch.profiler.profile accepts ProfilerActivity.HPU and `debug_activities` from here on."""
    torch.profiler.profile = HpuProfile  # type: ignore[misc]
    torch.profiler.profiler.profile = HpuProfile  # type: ignore[misc]
