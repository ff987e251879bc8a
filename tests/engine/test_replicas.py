"""Several cores behind one front end: scripted, each in a process of its own."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engine.by_core import ByCore
from tests.engine.scripted_core import ScriptedCore, make_broken_core, make_slow_core
from tests.engine.test_async_llm import deltas, tokens_of
from tests.limits import HANG_S, is_running, until, wait_until
from vllm.config.vllm import VllmConfig
from vllm.engine import core_handle, replicas
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.attached import Attachment
from vllm.engine.attached_replicas import AttachedReplicas
from vllm.engine.own_replicas import OwnReplicas
from vllm.errors import BadRequest, ConfigError, EngineDeadError

pytestmark = pytest.mark.engine

NUM_CORES = 2
LONG = 300  # tokens: seconds
FIRST = 4  # the number that users see of the first


@pytest.fixture
def copies(config: VllmConfig) -> VllmConfig:
    return copied(config, NUM_CORES)


def copied(config: VllmConfig, count: int) -> VllmConfig:
    parallel = dataclasses.replace(
        config.parallel,
        data_parallel_size=FIRST + count,
        data_parallel_size_local=count,
        served_copies=count,
        data_parallel_start_rank=FIRST,
        data_parallel_rank=FIRST,
    )
    return dataclasses.replace(config, parallel=parallel)


@contextmanager
def serving(client: Any, config: VllmConfig) -> Iterator[AsyncLLM]:
    llm = AsyncLLM(config, client)
    try:
        yield llm
    finally:
        llm.shutdown()


@pytest.fixture
async def llm(copies: VllmConfig) -> AsyncIterator[AsyncLLM]:
    with serving(OwnReplicas(copies, make_slow_core), copies) as llm:
        yield llm


def own(llm: AsyncLLM) -> OwnReplicas:
    assert isinstance(llm.client, OwnReplicas)
    return llm.client


async def endings(llm: AsyncLLM, count: int, max_tokens: int = 10) -> list[str]:
    """How so many requests end; those of a core that ends with its error."""

    async def ending(number: int) -> str:
        # Cores with a script know requests by their ids, whose front ends do not matter there.
        request_id = f"{id(llm)}-{number}"
        params = deltas(max_tokens=max_tokens)
        outputs = [o async for o in llm.generate([5, 6], params, request_id)]
        choice = outputs[-1].outputs[0]
        if choice.finish_reason == "error":
            return str(choice.stop_reason)
        tokens = [token for output in outputs for token in output.outputs[0].token_ids]
        assert tokens == list(range(100, 100 + max_tokens))
        return str(choice.finish_reason)

    return await asyncio.gather(*(ending(number) for number in range(count)))


async def test_requests_calls_and_aborts_reach_the_cores_they_are_of(llm: AsyncLLM) -> None:
    by_core = ByCore()
    llm.add_stat_logger(by_core)
    # Slots of the cores have the same numbers, for other requests.
    asked = [tokens_of(llm, f"r{i}", deltas(max_tokens=1 + i % 17)) for i in range(60)]
    assert await asyncio.gather(*asked) == [list(range(100, 101 + i % 17)) for i in range(60)]
    assert set(by_core.stats) == {0, 1}
    assert await llm.call("echo", 1) == [[1], [1]]
    assert await llm.reset_prefix_cache()
    with pytest.raises(Exception, match="there is no wash"):
        await llm.call("wash")
    stream = await llm.add_request("a", [5, 6], deltas(max_tokens=900))
    await stream.get()
    assert sum(await llm.call("num_requests")) == 1
    stream.close()
    await until(lambda: llm.num_open_requests == 0)
    while sum(await llm.call("num_requests")):
        await asyncio.sleep(0.01)


async def test_a_request_may_name_its_copy(llm: AsyncLLM) -> None:
    streams = [
        await llm.add_request(f"r{i}", [5, 6], deltas(max_tokens=900), data_parallel_rank=FIRST + 1)
        for i in range(5)
    ]
    for stream in streams:
        await stream.get()
    assert await llm.call("num_requests") == [0, 5]
    for wrong in (FIRST - 1, FIRST + NUM_CORES, "1", True):
        with pytest.raises(BadRequest, match="copies of the model from 4 to 5"):
            await llm.add_request("w", [5], deltas(), data_parallel_rank=wrong)  # type: ignore[arg-type]


async def test_a_core_that_is_killed_ends_its_own_requests_and_is_started_again(
    llm: AsyncLLM,
) -> None:
    client = own(llm)
    for _ in range(2):
        victim = client.pids[1]
        others = client.pids[0]
        task = asyncio.create_task(endings(llm, 40, LONG))
        await until(lambda: len(client._owners) >= 40)
        # A call waits for every core.
        call = asyncio.create_task(llm.call("echo", 1))
        os.kill(victim, signal.SIGKILL)
        ends = await task
        text = f"engine core 5 (process {victim}) was killed by SIGKILL"
        assert set(ends) == {"length", text}
        assert ends.count(text) == 20
        await asyncio.wait([call])
        assert call.exception() is None or text in str(call.exception())
        # While it starts, and afterwards.
        assert set(await endings(llm, 10)) == {"length"}
        while client.pids[1] == victim:
            await asyncio.sleep(0.01)
        assert set(await endings(llm, 40)) == {"length"}
        assert client.pids[0] == others
        assert await llm.call("num_requests") == [0, 0]
    assert not llm.errored


@pytest.fixture
def sharing(config: VllmConfig) -> VllmConfig:
    """Copies that share experts, as far as their processes know."""
    hf_config = copy.deepcopy(config.model.hf_config)
    hf_config.num_local_experts = 4
    model = dataclasses.replace(config.model, hf_config=hf_config)
    parallel = dataclasses.replace(
        config.parallel,
        data_parallel_size=NUM_CORES,
        data_parallel_size_local=NUM_CORES,
        served_copies=NUM_CORES,
        enable_expert_parallel=True,
    )
    return dataclasses.replace(config, model=model, parallel=parallel)


@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGKILL, marks=pytest.mark.product), signal.SIGSTOP]
)
async def test_cores_that_share_experts_end_and_start_together(
    sharing: VllmConfig, how: signal.Signals
) -> None:
    with serving(OwnReplicas(sharing, make_slow_core), sharing) as llm:
        client = own(llm)
        for process in client._processes.values():
            process.pulse.limit_s = 2.0
        before = client.pids
        task = asyncio.create_task(endings(llm, 40, 3 * LONG))
        await until(lambda: len(client._owners) >= 40)
        os.kill(before[1], how)
        ends = await task
        text = f"engine core 1 (process {before[1]}) was killed by SIGKILL"
        assert ends.count(text) == 20
        (others,) = {*ends} - {text}
        assert others == (
            f"engine core 0 (process {before[0]}) ended with another one: engine core 1, with "
            "which it shares experts, ended"
        )
        await until(lambda: not {*before} & {*client.pids})
        assert set(await endings(llm, 40)) == {"length"}
        assert not any(is_running(pid) for pid in before)
        assert await llm.call("num_requests") == [0, 0]
        assert not llm.errored


class NeedsTheOther:
    """Makes cores of which the first fails as soon as the process of the second has ended."""

    def __init__(self, directory: Path, is_second_broken: bool = False) -> None:
        self.directory = directory
        self.is_second_broken = is_second_broken

    def __call__(self, config: VllmConfig) -> ScriptedCore:
        core = make_slow_core(config)
        pid_file = self.directory / "pid"
        if config.parallel.data_parallel_rank == 1:
            pid_file.write_text(str(os.getpid()))
            if self.is_second_broken:
                raise RuntimeError("the second is broken")
            return core

        def step() -> Any:
            if not is_running(int(pid_file.read_text())):
                raise RuntimeError("a sum has lost a rank")
            return take_step()

        take_step, core.step = core.step, step  # type: ignore[method-assign]
        if self.is_second_broken:
            wait_until(lambda: pid_file.exists() and pid_file.read_text())
            wait_until(lambda: not is_running(int(pid_file.read_text())))
            step()
        return core


async def test_a_core_whose_ranks_fail_with_another_s_says_which_one_ended(
    sharing: VllmConfig, tmp_path: Path
) -> None:
    with serving(OwnReplicas(sharing, NeedsTheOther(tmp_path)), sharing) as llm:
        client = own(llm)
        before = client.pids
        task = asyncio.create_task(endings(llm, 40, 3 * LONG))
        await until(lambda: len(client._owners) >= 40)
        os.kill(before[1], signal.SIGKILL)
        said = {end for end in await task if f"(process {before[0]})" in end}
        assert len(said) == 1
        assert said.pop().endswith("engine core 1, with which it shares experts, ended")


def test_a_start_that_fails_with_another_ends_with_what_the_other_says(
    sharing: VllmConfig, tmp_path: Path
) -> None:
    with pytest.raises(EngineDeadError, match="the second is broken"):
        OwnReplicas(sharing, NeedsTheOther(tmp_path, is_second_broken=True))


async def test_a_core_that_does_not_start_again_ends_those_that_need_it(
    sharing: VllmConfig, tmp_path: Path
) -> None:
    with serving(OwnReplicas(sharing, FirstAlways(tmp_path)), sharing) as llm:
        assert set(await endings(llm, 4)) == {"length"}
        os.kill(own(llm).pids[1], signal.SIGKILL)
        died = await asyncio.wait_for(llm.died(), HANG_S)
        assert "engine core 1 could not be started again, and the others share experts" in str(died)


async def test_a_core_that_fails_ends_with_what_it_says(llm: AsyncLLM) -> None:
    task = asyncio.create_task(endings(llm, 10, LONG))
    await until(lambda: len(own(llm)._owners) >= 10)
    with pytest.raises(Exception, match="ended with exit code 1: RuntimeError: crash was called"):
        await llm.call("crash")
    assert all("RuntimeError: crash was called" in end for end in await task)
    assert set(await endings(llm, 10)) == {"length"}, "by the cores that were started again"


async def test_a_core_that_is_stopped_gets_no_requests_until_it_goes_on(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "SILENT_S", 2.5)  # of a sign of life every second
    client = own(llm)
    assert set(await endings(llm, 4)) == {"length"}
    os.kill(client.pids[0], signal.SIGSTOP)
    try:
        await until(lambda: client._replicas[0].pulse.silence_s() > 2.5)
        assert set(await endings(llm, 20)) == {"length"}
        assert not await llm.is_hung()
    finally:
        os.kill(client.pids[0], signal.SIGCONT)
    await until(lambda: client._replicas[0].pulse.silence_s() < 2.5)
    by_core = ByCore()
    llm.add_stat_logger(by_core)
    assert set(await endings(llm, 20)) == {"length"}
    assert set(by_core.stats) == {0, 1}


class OnceOnly:
    """Makes a core where no file says that there was one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, config: VllmConfig) -> ScriptedCore:
        try:
            (self.directory / str(config.parallel.data_parallel_rank)).touch(exist_ok=False)
        except FileExistsError:
            raise RuntimeError("no second time") from None
        return make_slow_core(config)


class FirstAlways(OnceOnly):
    """Makes the core of copy 0 every time, and others once."""

    def __call__(self, config: VllmConfig) -> ScriptedCore:
        if config.parallel.data_parallel_rank == 0:
            return make_slow_core(config)
        return super().__call__(config)


@pytest.mark.product
async def test_a_core_that_does_not_start_again_is_given_up_and_the_last_ends_the_engine(
    copies: VllmConfig, tmp_path: Path
) -> None:
    client = OwnReplicas(copies, OnceOnly(tmp_path))
    with serving(client, copies) as llm:
        assert set(await endings(llm, 4)) == {"length"}
        os.kill(client.pids[0], signal.SIGKILL)
        given_up = core_handle.MOST_STARTS
        await until(lambda: client._failed_starts[0] == given_up)
        assert set(await endings(llm, 4)) == {"length"}
        with pytest.raises(EngineDeadError, match="engine core 4 has ended"):
            await llm.add_request("a", [5], deltas(), data_parallel_rank=FIRST)
        os.kill(client.pids[1], signal.SIGKILL)
        died = await asyncio.wait_for(llm.died(), 300)
        assert "no engine core could be started again" in str(died)
    await until(lambda: not any(map(is_running, client.pids)))


async def test_another_front_end_notices_ends_and_new_lives(copies: VllmConfig) -> None:
    client = OwnReplicas(copies, make_slow_core, num_others=1)
    attached = AttachedReplicas(copies, Attachment(client.addresses, 1, tuple(client.living_cores)))
    with serving(client, copies) as first, serving(attached, copies) as second:
        await first.check_health()
        for _ in range(2):
            task = asyncio.create_task(endings(second, 40, LONG))
            own_task = asyncio.create_task(tokens_of(first, "own", deltas(max_tokens=100)))
            await until(lambda: len(attached._owners) >= 40)
            victim = client.pids[1]
            os.kill(victim, signal.SIGKILL)
            ends = await task
            text = f"engine core 5 (process {victim}) is gone"
            assert set(ends) == {"length", text} and ends.count(text) == 20
            await asyncio.wait([own_task])
            await until(lambda: attached._replicas[1].state is replicas.State.UP)
            assert attached.cores[1].pid == client.pids[1] != victim
            assert set(await endings(second, 40)) == {"length"}
        # Both know the same life.
        assert attached._replicas[1].address == client._replicas[1].address


def second_is_broken(config: VllmConfig) -> ScriptedCore:
    make: Callable[[VllmConfig], ScriptedCore] = make_slow_core
    if config.parallel.data_parallel_rank == FIRST + 1:
        make = make_broken_core
    return make(config)


def test_an_error_of_one_start_ends_all(copies: VllmConfig) -> None:
    before = children()
    with pytest.raises(ConfigError, match="too little"):
        OwnReplicas(copies, second_is_broken)
    wait_until(lambda: children() <= before, "the end of all cores")


def children() -> set[int]:
    text = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in text.split() if is_running(int(pid))}
