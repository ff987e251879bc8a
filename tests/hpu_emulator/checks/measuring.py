"""Metrics and profiles. Lazy mode, with PT_HPU_METRICS_GC_DETAILS and cache metrics."""

from __future__ import annotations

import json

import habana_frameworks.torch as htorch
import pytest
import torch
from habana_frameworks.torch.activity_profiler import DebugActivity
from habana_frameworks.torch.hpu.metrics import (
    metric_global,
    metric_localcontext,
    metrics_dump,
)
from hpu_emulator import recipes
from torch.profiler import ProfilerActivity

HPU = torch.device("hpu")


def run(rows: int) -> None:
    (torch.zeros(rows, device=HPU) + 1).mul_(3)
    htorch.core.mark_step()


def test_compilations_are_counted_with_the_names_of_their_recipes():
    with metric_localcontext("graph_compilation") as local:
        run(11)
        run(11)
        run(12)
    run(13)
    stats = local.stats()
    assert stats[:3] == [("TotalNumber", 2), ("TotalTime", 4000.0), ("AvgTime", 2000.0)]
    assert len(stats) == 5
    assert stats[3][0].startswith("lazy_")
    whole = metric_global("graph_compilation")
    assert whole.name() == "graph_compilation"
    assert dict(whole.stats())["TotalNumber"] >= 3
    whole.reset()
    assert whole.stats() == [("TotalNumber", 0), ("TotalTime", 0), ("AvgTime", 0)]


def test_fallbacks_are_counted_by_op():
    with metric_localcontext("cpu_fallback") as local:
        torch.linalg.inv(torch.eye(2).to(HPU))
    (_, number), (_, ops) = local.stats()
    assert number == sum(ops.values()) > 0
    assert all(name.startswith("aten::") for name in ops)


def test_the_recipe_cache_counts_hits_and_misses():
    run(21)
    with metric_localcontext("recipe_cache") as local:
        run(21)
        run(22)
    found = {"TotalHit": 1, "RecipeHit": 0, "TotalMiss": 1, "RecipeMiss": 1}
    assert dict(local.stats()) == found


def test_unknown_metrics_are_refused_and_memory_is_never_in_fragments():
    with pytest.raises(KeyError, match="no metric is called 'time'"):
        metric_global("time")
    assert all(value == 0 for _, value in metric_global("memory_defragmentation").stats())


def test_metrics_are_dumped(tmp_path):
    metrics_dump(str(tmp_path / "metrics"))
    entry = json.loads((tmp_path / "metrics").read_text())
    assert entry["triggered_by"] == "user"
    assert "TotalNumber" in entry["metrics"]["graph_compilation"]
    with pytest.raises(ValueError, match="PT_HPU_METRICS_FILE"):
        metrics_dump()


def profiled(path, **options):
    with torch.profiler.profile(**options) as profile:
        run(31)
        run(31)
    profile.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    return [event for event in events if event.get("pid") == "HPU" and event["ph"] == "X"]


def test_a_profile_has_an_event_per_launch(tmp_path):
    activities = [ProfilerActivity.CPU, ProfilerActivity.HPU]
    events = profiled(tmp_path / "trace.json", activities=activities)
    assert [event["args"]["compiled"] for event in events] == [True, False]
    assert all(event["dur"] > 0 and event["args"]["ops"] > 1 for event in events)
    assert recipes.find(events[0]["args"]["recipe"]).name() in events[0]["name"]


def test_debug_activities_add_calls_of_the_bridge(tmp_path):
    activities = [ProfilerActivity.HPU]
    wanted = [DebugActivity.SYNAPSE_FUNCTION_CALLS, DebugActivity.BRIDGE_FUNCTION_CALLS]
    events = profiled(tmp_path / "t.json", activities=activities, debug_activities=wanted)
    names = {event["name"] for event in events}
    assert {"synLaunch", "bridge::lazy::launch"} <= names
    with pytest.raises(ValueError, match=r"need ProfilerActivity\.HPU"):
        torch.profiler.profile(activities=[ProfilerActivity.CPU], debug_activities=wanted)


def test_a_profile_of_the_host_alone_has_no_device(tmp_path):
    assert profiled(tmp_path / "t.json", activities=[ProfilerActivity.CPU]) == []
