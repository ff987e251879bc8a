"""Which bundles ranks take, and which variables their machines get; no Ray is needed."""

from __future__ import annotations

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vllm.config.ray_start import RayStart
from vllm.errors import ConfigError
from vllm.executor.ray_cluster.bundles import Need, check_supply, choose, spread
from vllm.executor.ray_cluster.environment import EXCLUDED, travelling
from vllm.executor.ray_cluster.session import Session, start_of, was_set_at_birth

HPU = Need("HPU", 1.0)
CPU = Need("CPU", 2.0)


def hpus(*nodes: str) -> tuple[dict[int, dict[str, float]], dict[int, str]]:
    """A bundle of one HPU on each of these nodes, by index."""
    return {i: {"HPU": 1.0} for i in range(len(nodes))}, dict(enumerate(nodes))


def test_ranks_of_one_machine_follow_each_other_from_that_of_the_engine() -> None:
    bundles, nodes = hpus("b", "a", "c", "b", "a", "b")
    assert choose(HPU, 6, bundles, nodes, "a") == [1, 4, 0, 3, 5, 2]
    assert choose(HPU, 6, bundles, nodes, "elsewhere") == [0, 3, 5, 1, 4, 2]
    assert choose(HPU, 2, bundles, nodes, "c") == [2, 0]


def test_bundles_without_the_resource_are_left_out() -> None:
    bundles = {0: {"CPU": 1.0}, 1: {"CPU": 4.0}, 2: {"CPU": 2.0, "HPU": 1.0}}
    nodes = dict.fromkeys(bundles, "a")
    assert choose(CPU, 2, bundles, nodes, "a") == [1, 2]
    with pytest.raises(ConfigError, match=r"The 3 ranks .* has 2 such \(of 3 bundles\)"):
        choose(CPU, 3, bundles, nodes, "a")


def test_a_copy_has_a_bundle_for_all_its_ranks() -> None:
    need = HPU.of_copies(2)
    assert need.resources == {"HPU": 2.0} and need.room({"HPU": 5.0}) == 2
    bundles = {0: {"HPU": 1.0}, 1: {"HPU": 2.0}, 2: {"HPU": 2.0}}
    assert choose(need, 2, bundles, {0: "a", 1: "b", 2: "a"}, "a") == [2, 1]
    with pytest.raises(
        ConfigError, match=r"The 3 copies \(--data-parallel-size\) need a bundle of 2"
    ):
        choose(need, 3, bundles, dict.fromkeys(bundles, "a"), "a")
    with pytest.raises(ConfigError, match="has 3 HPU: a bundle is of one copy, which uses 2"):
        choose(need, 1, {0: {"HPU": 3.0}}, {0: "a"}, "a")


@pytest.mark.parametrize(
    ("count", "here", "num_here", "expected"),
    [
        (4, "a", -1, ["a", "a", "b", "b"]),
        (1, "a", -1, ["a"]),
        (4, "a", 1, ["a", "b", "b", "b"]),
        (4, "a", 0, ["b", "b", "b", "c"]),
        (4, "elsewhere", -1, ["b", "b", "b", "a"]),
        (6, "a", -1, ["a", "a", "b", "b", "b", "c"]),
        (7, "a", -1, None),
        (4, "a", 3, None),  # it has room for two
        (6, "a", 1, None),  # the others have room for four
    ],
)
def test_copies_are_here_first_and_then_where_most_room_is(
    count: int, here: str, num_here: int, expected: list[str] | None
) -> None:
    nodes = {"c": {"HPU": 3.0}, "a": {"HPU": 4.0}, "b": {"HPU": 7.0}, "d": {"CPU": 9.0}}
    assert spread(HPU.of_copies(2), count, nodes, here, num_here) == expected


def test_a_bundle_of_two_devices_is_refused() -> None:
    with pytest.raises(ConfigError, match="Bundle 1 of the placement group has 2 HPU"):
        choose(HPU, 2, {0: {"HPU": 1.0}, 1: {"HPU": 2.0}}, {0: "a", 1: "a"}, "a")


def test_the_users_indices_win(monkeypatch: pytest.MonkeyPatch) -> None:
    bundles, nodes = hpus("a", "b", "a", "b")
    monkeypatch.setenv("VLLM_RAY_BUNDLE_INDICES", "3, 0")
    assert choose(HPU, 2, bundles, nodes, "a") == [3, 0]


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ("0", "must be 2 numbers of bundles"),
        ("0,0", "must be 2 numbers of bundles"),
        ("0,x", "must be 2 numbers of bundles"),
        ("0,9", "there is no bundle 9"),
        ("0,2", "bundle 2 has 4 CPU, and a rank needs 1 HPU"),
    ],
)
def test_indices_that_cannot_be_are_refused(
    indices: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_RAY_BUNDLE_INDICES", indices)
    bundles = {0: {"HPU": 1.0}, 1: {"HPU": 1.0}, 2: {"CPU": 4.0}}
    with pytest.raises(ConfigError, match=f"VLLM_RAY_BUNDLE_INDICES.*{said}"):
        choose(HPU, 2, bundles, dict.fromkeys(bundles, "a"), "a")


def test_a_rank_needs_one_hpu_or_as_many_cpus_as_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Need.of("hpu") == HPU and Need.of("cpu") == Need("CPU", 1.0)
    monkeypatch.setenv("VLLM_RAY_PER_WORKER_GPUS", "0.5")
    assert Need.of("cpu").resources == {"CPU": 0.5}
    with pytest.raises(ConfigError, match=r"VLLM_RAY_PER_WORKER_GPUS=0\.5: a rank needs one HPU"):
        Need.of("hpu")


def test_bundles_do_not_span_machines() -> None:
    nodes = [{"CPU": 3.0}, {"CPU": 3.0}, {"HPU": 8.0}]
    check_supply(CPU, 2, nodes)
    check_supply(Need("CPU", 0.1), 60, nodes)
    with pytest.raises(ConfigError, match=r"The 3 ranks .* 3 nodes has room for 2"):
        check_supply(CPU, 3, nodes)


def test_what_other_programs_would_drop_travels() -> None:
    travels = dict.fromkeys(
        "QUANT_CONFIG RUNTIME_SCALE_PATCHING HF_TOKEN HLS_NUM PT_HPU_LAZY_MODE HABANA_LOGS "
        "HCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME VLLM_SKIP_WARMUP OMP_NUM_THREADS LOG_LEVEL_ALL "
        "PYTHONHASHSEED".split(),
        "1",
    )
    stays = dict.fromkeys(
        "VLLM_HOST_IP VLLM_API_KEY HLS_MODULE_ID HABANA_VISIBLE_MODULES PATH HOME PYTHONPATH "
        "RAY_ADDRESS".split(),
        "1",
    )
    assert travelling({**travels, **stays}) == travels


def test_users_add_and_take_away_variables(tmp_path: Path) -> None:
    environ = {
        "VLLM_CONFIG_ROOT": str(tmp_path),
        "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY": "MY_NAME, PATH",
        "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY": "OUR_",
        "MY_NAME": "1",
        "MY_OTHER": "1",
        "OUR_NAME": "1",
        "PATH": "/bin",
        "HF_TOKEN": "hf_secret",
    }
    found = travelling(environ)
    assert environ.keys() - found.keys() == {"MY_OTHER"}
    (tmp_path / EXCLUDED).write_text(json.dumps(["HF_TOKEN", "OUR_NAME"]))
    assert found.keys() - travelling(environ).keys() == {"HF_TOKEN", "OUR_NAME"}


@pytest.mark.parametrize("text", ["{", '{"HF_TOKEN": 1}', "[1]"])
def test_a_list_of_variables_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / EXCLUDED).write_text(text)
    with pytest.raises(ConfigError, match=f"{EXCLUDED}.*must be a list of names"):
        travelling({"VLLM_CONFIG_ROOT": str(tmp_path)})


def test_paths_reach_other_machines_whole_and_functions_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    arguments = {
        "model": Path("model"),
        "tokenizer": "organisation/name",
        "download_dir": "not-there-yet",
        "hf_overrides": lambda config: {**config, "seen": True},
    }
    start = start_of(arguments)
    assert pickle.loads(pickle.dumps(start)) == start and b"name" not in repr(start).encode()
    found = pickle.loads(start.arguments)
    assert found["model"] == str(tmp_path / "model")
    assert found["download_dir"] == str(tmp_path / "not-there-yet")
    assert found["tokenizer"] == "organisation/name"
    assert found["hf_overrides"]({}) == {"seen": True}


def test_what_cannot_be_sent_is_an_error() -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.raises(ConfigError, match="cannot be sent to other machines"):
        start_of({"hf_overrides": threading.Lock()})


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.1:port", ":6379"])
def test_an_address_that_is_none_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS={address}: must be host:port"):
        Session(RayStart(b""))


def test_an_error_in_another_thread_is_raised_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where signals cannot be set."""
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(Session, RayStart(b""))
    with pytest.raises(ConfigError, match="RAY_ADDRESS=nowhere"):
        made.result()


def test_what_ray_has_set_in_a_process_is_told_from_what_it_began_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert was_set_at_birth("PATH")
    monkeypatch.setenv("SET_LATER", "1")
    assert not was_set_at_birth("SET_LATER")
