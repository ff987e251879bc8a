"""Ranks that run with different settings are told apart before any of them loads."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from tests.executor.fake_worker import FakeConfig, FakeSection, FakeWorker, fake_config
from tests.executor.thread_ranks import ThreadRanks
from vllm.config.digest import digests
from vllm.distributed.place import Place, make_places
from vllm.errors import ConfigError
from vllm.executor.distributed import DistributedExecutor
from vllm.executor.handshake import compare, introduction
from vllm.executor.local_ranks import LocalRanks
from vllm.executor.pulse import Pulse
from vllm.executor.rank import rank_main
from vllm.executor.ranks import Channel, RankMain
from vllm.messages.rank import Joined


class Loading(FakeWorker):
    loaded: ClassVar[list[int]] = []

    def load(self) -> None:
        self.loaded.append(self.place.rank)


class OddRanks(ThreadRanks):
    """Rank 2 was given another configuration than the executor has."""

    def __init__(self, odd: Any) -> None:
        super().__init__()
        self._odd = odd

    def start(self, main: RankMain, places: Sequence[Place], on_wait: Callable[[], None]) -> None:
        odd = functools.partial(rank_main, Loading, self._odd)

        def run(place: Place, channel: Channel, pulse: Pulse) -> None:
            (odd if place.rank == 2 else main)(place, channel, pulse)

        super().start(run, places, on_wait)


@pytest.fixture(autouse=True)
def _nobody_has_loaded() -> None:
    Loading.loaded = []


def test_a_rank_with_another_configuration_is_named_and_nobody_loads() -> None:
    config = fake_config()
    odd = replace(config, cache=FakeSection(4), structured_outputs=FakeSection(5))
    executor = DistributedExecutor(config, Loading, OddRanks(odd), make_places(4))
    with pytest.raises(ConfigError) as caught:
        executor.start()
    executor.stop()
    assert str(caught.value) == (
        "rank 2 runs with other settings than rank 0: the cache settings, the structured outputs "
        "settings. All parts of an engine need the same arguments, versions and environment."
    )
    assert Loading.loaded == []


def test_equal_ranks_load() -> None:
    executor = DistributedExecutor(fake_config(), Loading, OddRanks(fake_config()), make_places(3))
    executor.start()
    executor.stop()
    assert sorted(Loading.loaded) == [0, 1, 2]


@dataclass(frozen=True)
class Contagious(FakeConfig):
    """Sets a variable in the process of rank 1, as a program may that it imports."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if multiprocessing.current_process().name == "vllm-rank-1":
            os.environ["VLLM_BUCKETING_STRATEGY"] = "lin"


def test_a_process_with_another_environment_is_named() -> None:
    ranks = LocalRanks()
    executor = DistributedExecutor(Contagious(FakeSection()), FakeWorker, ranks, make_places(2))
    message = r"rank 1 .*VLLM_BUCKETING_STRATEGY \('lin', on rank 0 'exp'\)"
    with pytest.raises(ConfigError, match=message):
        executor.start()
    executor.stop()


def test_versions_count_and_what_a_rank_has_to_itself_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = introduction(fake_config())
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("VLLM_TORCH_PROFILER_DIR", "/elsewhere")
    compare([first, introduction(fake_config())])
    assert "secret" not in str(introduction(fake_config()))
    newer = Joined(first.sections, {**first.versions, "torch": "9.9"}, first.variables)
    with pytest.raises(ConfigError, match=r"rank 1 .*torch \(9\.9, on rank 0 \d"):
        compare([first, newer])
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1")
    with pytest.raises(ConfigError, match=r"PT_HPU_LAZY_MODE \(1, on rank 0 not set\)"):
        compare([first, introduction(fake_config())])


class Facts:
    def __init__(self, *names: str) -> None:
        self.names = set(names)


def test_a_digest_is_of_values_not_of_addresses_or_orders() -> None:
    def of(value: Any) -> str:
        return digests(replace(fake_config(), model=value))["model"]

    assert of(Facts("a", "b", "c")) == of(Facts("c", "b", "a"))
    assert of(Facts("a")) != of(Facts("b"))
    assert of({"x": [1, 2.5]}) == of({"x": [1, 2.5]}) != of({"x": [1, 2]})
    assert of(FakeWorker) != of(Loading)
    assert of(object()) == of(object())
    assert of(functools.partial(int, 2)) == of(functools.partial(int, 2))
