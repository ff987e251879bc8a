"""HPU graphs, compiled regions, metrics, the recipe cache and collectives of the emulator."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hpu_emulator.conftest import CHECKS, Emulated
from tests.limits import HANG_S

LAZY = {"PT_HPU_LAZY_MODE": "1"}
MEASURED = {
    "PT_HPU_METRICS_GC_DETAILS": "1",
    "PT_HPU_ENABLE_CACHE_METRICS": "true",
    "HPU_EMULATOR_COMPILE_MS": "2",
    "HPU_EMULATOR_LAUNCH_US": "50",
}


def test_graphs_and_metrics_of_lazy_mode_keep_their_rules(emulated: Emulated) -> None:
    emulated.check("graphs.py", **LAZY)
    emulated.check("measuring.py", **LAZY, **MEASURED)


def test_compiled_regions_keep_their_rules(emulated: Emulated) -> None:
    emulated.check("compiled.py", PT_HPU_LAZY_MODE="0")


def test_dynamo_is_off_in_lazy_mode(emulated: Emulated) -> None:
    code = """
        import habana_frameworks.torch, torch
        def refuse(graph, inputs): raise AssertionError("traced")
        print(torch.compile(lambda x: x + 1, backend=refuse)(torch.ones(1)).item())
    """
    assert emulated.run(code, **LAZY).strip() == "2.0"


TENSOR_CACHE = """
    import habana_frameworks.torch, torch
    results = []
    for disable in (False, True):
        graphed = torch.hpu.wrap_in_hpu_graph_func(lambda x: x + 1, disable_tensor_cache=disable)
        first = torch.ones(1, device="hpu")
        graphed(first)
        graphed(torch.zeros(1, device="hpu"))
        results.append(first.item() == 1)
    print(*results)
"""


@pytest.mark.parametrize(
    ("value", "disabled"),
    [("1", "True True"), ("true", "False True"), ("0", "False False"), ("false", "False False")],
)
def test_the_word_that_disables_the_tensor_cache_is_1(
    emulated: Emulated, value: str, disabled: str
) -> None:
    variables = {**LAZY, "PT_HPUGRAPH_DISABLE_TENSOR_CACHE": value}
    assert emulated.run(TENSOR_CACHE, **variables).strip() == disabled


RECIPES = """
    import habana_frameworks.torch as htorch, torch
    from hpu_emulator import recipes
    for rows in (2, 3):
        torch.ones(rows, device="hpu").mul_(2)
        htorch.core.mark_step()
    print(recipes.count(), recipes.loaded())
"""


def test_recipes_outlive_the_process_in_a_directory(emulated: Emulated, tmp_path: Path) -> None:
    def counts(config: str, **variables: str) -> list[int]:
        printed = emulated.run(RECIPES, **LAZY, PT_HPU_RECIPE_CACHE_CONFIG=config, **variables)
        return [int(word) for word in printed.split()]

    assert counts(f"{tmp_path},false,1024") == [2, 0]
    assert counts(f"{tmp_path},false,1024") == [0, 2]
    assert counts(f"{tmp_path},false,1024", HPU_EMULATOR_GENERATION="gaudi3") == [2, 0]
    assert counts(f"{tmp_path},true,1") == [2, 0]
    # Room for one: each recipe drives out the other.
    assert counts(f"{tmp_path},false,1") == [2, 0]


def test_a_recipe_cache_or_a_latency_in_error_is_named(emulated: Emulated, tmp_path: Path) -> None:
    for variable, value in (
        ("PT_HPU_RECIPE_CACHE_CONFIG", f"{tmp_path},false,much"),
        ("HPU_EMULATOR_COMPILE_MS", "slow"),
        ("HPU_EMULATOR_LAUNCH_US", "-1"),
        ("PT_HPU_METRICS_DUMP_TRIGGERS", "sometimes"),
    ):
        others = {**LAZY, "PT_HPU_METRICS_FILE": str(tmp_path / "metrics"), variable: value}
        code = "import habana_frameworks.torch.hpu.metrics"
        done = emulated.start(code, **others)
        assert done.returncode != 0
        assert variable in done.stderr


def test_metrics_are_written_when_their_triggers_come(emulated: Emulated, tmp_path: Path) -> None:
    file = tmp_path / "metrics"
    triggers = "process_exit,metric_change,mark_step"
    code = "import habana_frameworks.torch.hpu.metrics\n" + RECIPES.replace("\n    ", "\n")
    variables = {"PT_HPU_METRICS_FILE": str(file), "PT_HPU_METRICS_DUMP_TRIGGERS": triggers}
    emulated.run(code, **LAZY, **variables)
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    found = [entry["triggered_by"] for entry in entries]
    assert found == ["metric_change", "mark_step"] * 2 + ["process_exit"]


@pytest.mark.parametrize(("lazy", "collectives"), [("0", "false"), ("1", "true"), ("1", "false")])
def test_collectives_of_two_processes(emulated: Emulated, lazy: str, collectives: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {
        "PT_HPU_LAZY_MODE": lazy,
        "PT_HPU_ENABLE_LAZY_COLLECTIVES": collectives,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMPI_COMM_WORLD_SIZE": "2",
    }
    ranks = []
    for rank in ("0", "1"):
        names = {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
        environment = emulated.environment(**common, **names)
        ranks.append(
            subprocess.Popen(
                [sys.executable, str(CHECKS / "collectives.py")],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    printed = [process.communicate(timeout=HANG_S)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(printed)
