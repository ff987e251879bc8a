"""Compilations and fallbacks, step by step, as the plugin's metrics have them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from tests.conftest import LogLines
from vllm.device.launch import Launch, Phase, ShapeKey
from vllm.messages.step import StepPlan
from vllm.platforms.hpu.planner import padded_launch
from vllm.platforms.hpu.step_metrics import (
    StepCompilations,
    StepFallbacks,
    StepMetric,
    entries_of,
)

NONE = np.empty(0, np.int32)


class Metric:
    """What metric_global(name).stats() gives, to be changed in between."""

    def __init__(self, **totals: Any) -> None:
        self.totals: dict[str, Any] = {"TotalNumber": 0, **totals}
        self.recipes: list[tuple[str, int]] = []

    def __call__(self) -> list[tuple[str, Any]]:
        return entries_of([*self.totals.items(), *self.recipes])


def launch() -> Launch:
    return padded_launch(ShapeKey(Phase.DECODE, 8, 1, 128), NONE, NONE, NONE, NONE)


def run_step(observer: StepMetric, metric: Metric, step: int, **changes: Any) -> None:
    plan = StepPlan(step, NONE, NONE, NONE, NONE.astype(bool), NONE, (), NONE.reshape(0, 4))
    observer.step_begins(plan)
    observer.launch_begins(launch())
    metric.totals.update(changes)
    observer.launch_ends(launch())
    observer.step_ends(plan)


def test_a_step_that_compiles_is_named_with_its_launches(log_lines: LogLines) -> None:
    metric = Metric(TotalTime=100, AvgTime=0)
    observer = StepCompilations(metric, logs_all=False)
    run_step(observer, metric, 7, TotalNumber=3, TotalTime=450)
    run_step(observer, metric, 8)
    (record,) = log_lines.records
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert text.startswith("Step 7 (decode[8x1, 128 blocks]): 3 graph compilations")
    assert "total time 350" in text and "PT_HPU_METRICS_GC_DETAILS=1" in text


def test_recipes_are_named_where_the_plugin_tells_them(log_lines: LogLines) -> None:
    metric = Metric(TotalTime=0, AvgTime=0)
    metric.recipes = [("old", 5)]
    observer = StepCompilations(metric, logs_all=False)
    observer.step_begins(plan := StepPlan(1, NONE, NONE, NONE, NONE, NONE, (), NONE))
    metric.totals["TotalNumber"] = 11
    metric.recipes += [(f"recipe_{i}", i) for i in range(11)]
    observer.step_ends(plan)
    assert "Step 1 (no launch): 11 graph compilations" in log_lines.text
    assert "recipe_0 0, recipe_1 1" in log_lines.text and "and 3 more" in log_lines.text
    assert "old" not in log_lines.text


def test_a_recipe_compiled_again_is_named_again(log_lines: LogLines) -> None:
    metric = Metric(TotalTime=0, AvgTime=0)
    metric.recipes = [("graph_0", 5)]
    observer = StepCompilations(metric, logs_all=False)
    observer.step_begins(plan := StepPlan(1, NONE, NONE, NONE, NONE, NONE, (), NONE))
    metric.totals["TotalNumber"] = 1
    metric.recipes.append(("graph_0", 9))
    observer.step_ends(plan)
    assert "graph_0 9" in log_lines.text


@pytest.mark.parametrize("kind", [StepCompilations, StepFallbacks])
def test_all_logs_the_steps_without_any_too(kind: type[StepMetric], log_lines: LogLines) -> None:
    metric = Metric(TotalTime=0, FallbackOps={})
    for step in (1, 2):
        run_step(kind(metric, logs_all=True), metric, step)
    assert [record.levelno for record in log_lines.records] == [logging.INFO] * 2
    assert "Step 2 (decode[8x1, 128 blocks]): 0 " in log_lines.text


def test_ops_that_fell_back_are_counted_by_name(log_lines: LogLines) -> None:
    metric = Metric(FallbackOps={"aten::sort": 2})
    observer = StepFallbacks(metric, logs_all=False)
    ops = {"aten::sort": 3, "aten::unique": 4}
    run_step(observer, metric, 5, TotalNumber=5, FallbackOps=ops)
    run_step(observer, metric, 6)
    (record,) = log_lines.records
    text = "5 ops fell back to the CPU: aten::unique (4), aten::sort (1)"
    assert record.getMessage().endswith(text)


def test_a_step_that_failed_is_not_counted_with_the_next(log_lines: LogLines) -> None:
    metric = Metric(TotalTime=0, AvgTime=0)
    observer = StepCompilations(metric, logs_all=False)
    observer.step_begins(StepPlan(1, NONE, NONE, NONE, NONE, NONE, (), NONE))
    observer.launch_begins(launch())
    metric.totals["TotalNumber"] = 2
    run_step(observer, metric, 2)
    assert not log_lines.records


def test_what_was_read_does_not_change_with_the_plugins_own() -> None:
    ops = {"aten::sort": 1}
    entries = entries_of([("TotalNumber", 1), ("FallbackOps", ops), [("graph_0", 5)]])
    ops["aten::sort"] = 2
    assert entries == [("TotalNumber", 1), ("FallbackOps", {"aten::sort": 1}), ("graph_0", 5)]
