"""Many callers on one event loop; the core follows a script, in a thread or in a process."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.engine.scripted_core import (
    ScriptedCore,
    make_broken_core,
    make_crashing_core,
    make_slow_core,
)
from tests.limits import HANG_S, is_running, until, wait_until
from vllm.config.vllm import VllmConfig
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.client import InProcessClient, ProcessClient
from vllm.engine.protocol import EngineClient
from vllm.errors import BadRequest, ConfigError, EngineDeadError, NotAvailable
from vllm.outputs import RequestOutput
from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams


def deltas(**values: Any) -> SamplingParams:
    return SamplingParams(output_kind=RequestOutputKind.DELTA, **values)


async def tokens_of(llm: AsyncLLM, request_id: str, params: SamplingParams) -> list[int]:
    outputs = [output async for output in llm.generate([5, 6], params, request_id)]
    assert outputs[-1].finished
    return [token for output in outputs for token in output.outputs[0].token_ids]


@pytest.fixture
async def threaded(config: VllmConfig) -> AsyncIterator[tuple[AsyncLLM, ScriptedCore]]:
    client = InProcessClient(config, lambda config: ScriptedCore(config, step_s=0.002))
    llm = AsyncLLM(config, client)
    assert isinstance(client.core, ScriptedCore)
    yield llm, client.core
    llm.shutdown()


async def test_two_hundred_callers_each_get_their_own_tokens(
    threaded: tuple[AsyncLLM, ScriptedCore],
) -> None:
    llm, core = threaded
    results = await asyncio.gather(
        *(tokens_of(llm, f"r{i}", deltas(max_tokens=1 + i % 17)) for i in range(200))
    )
    assert results == [list(range(100, 101 + i % 17)) for i in range(200)]
    assert not core.requests


async def test_a_request_can_be_added_and_read_by_its_stream(
    threaded: tuple[AsyncLLM, ScriptedCore],
) -> None:
    llm, core = threaded
    stream = await llm.add_request("a", [5, 6], deltas(max_tokens=5))
    first = await stream.get()
    tokens = first.outputs[0].token_ids
    tokens = [*tokens, *[t async for output in stream for t in output.outputs[0].token_ids]]
    assert tokens == list(range(100, 105))
    assert stream.finished and stream.get_nowait() is None
    # Nobody has to read: the place of one that is closed is free.
    stream = await llm.add_request("a", [5, 6], deltas(max_tokens=1000))
    stream.close()
    await until(lambda: not core.requests)
    assert llm.num_open_requests == 0
    assert await llm.is_sleeping() is False
    assert await llm.get_decoding_config() is llm.vllm_config.structured_outputs


@pytest.mark.parametrize(
    "argument",
    [
        {"lora_request": 1},
        {"prompt_text": "a"},
        {"tokenization_kwargs": {"truncation": True}},
    ],
    ids=str,
)
async def test_arguments_that_ask_for_what_is_not_here_are_refused(
    threaded: tuple[AsyncLLM, ScriptedCore], argument: dict[str, Any]
) -> None:
    llm, _ = threaded
    (name,) = argument
    with pytest.raises(NotAvailable, match=name):
        await llm.add_request("a", [5], SamplingParams(), **argument)
    with pytest.raises(NotAvailable, match=name):
        await anext(llm.generate([5], SamplingParams(), "a", **argument))
    assert llm.num_open_requests == 0


async def test_a_slow_reader_gets_merged_deltas_and_stalls_nobody(
    threaded: tuple[AsyncLLM, ScriptedCore],
) -> None:
    llm, _ = threaded
    slow = llm.generate([5], deltas(max_tokens=60), "slow")
    first = await anext(slow)
    assert await tokens_of(llm, "fast", deltas(max_tokens=100)) == list(range(100, 200))
    rest = [output async for output in slow]
    assert len(rest) <= 2
    ids = [token for output in [first, *rest] for token in output.outputs[0].token_ids]
    assert ids == list(range(100, 160))
    text = "".join(output.outputs[0].text for output in [first, *rest])
    assert text == (await llm.get_tokenizer()).decode(ids)


async def test_closing_the_iterator_aborts_in_the_core(
    threaded: tuple[AsyncLLM, ScriptedCore],
) -> None:
    llm, core = threaded
    stream = llm.generate([5], deltas(max_tokens=900, n=2), "a")
    await anext(stream)
    assert len(core.requests) == 2
    await stream.aclose()
    await until(lambda: not core.requests)
    assert len(core.aborted) == 2


async def test_cancelling_the_task_aborts_in_the_core(
    threaded: tuple[AsyncLLM, ScriptedCore],
) -> None:
    llm, core = threaded
    task = asyncio.create_task(tokens_of(llm, "a", deltas(max_tokens=900)))
    await until(lambda: core.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not core.requests)


async def test_abort_ends_the_iterator_with_its_reason(
    threaded: tuple[AsyncLLM, ScriptedCore],
) -> None:
    llm, core = threaded
    stream = llm.generate([5], SamplingParams(max_tokens=900), "a")
    await anext(stream)
    await llm.abort(["a", "unknown"])
    outputs: list[RequestOutput] = [output async for output in stream]
    last = outputs[-1]
    assert last.finished
    assert last.outputs[0].finish_reason == "abort"
    await until(lambda: not core.requests)


async def test_ids_and_prompts_are_checked_and_the_engine_goes_on(
    threaded: tuple[AsyncLLM, ScriptedCore],
) -> None:
    llm, _ = threaded
    open_stream = llm.generate([5], deltas(max_tokens=900), "a")
    await anext(open_stream)
    with pytest.raises(BadRequest, match="in use"):
        await anext(llm.generate([5], None, "a"))
    with pytest.raises(BadRequest, match="request_id"):
        await anext(llm.generate([5], None, ""))
    with pytest.raises(BadRequest, match="empty"):
        await anext(llm.generate([], None, "b"))
    assert await tokens_of(llm, "b", deltas(max_tokens=2)) == [100, 101]
    assert (await anext(open_stream)).outputs[0].token_ids
    await open_stream.aclose()


async def test_a_long_text_is_encoded_off_the_loop(threaded: tuple[AsyncLLM, ScriptedCore]) -> None:
    llm, core = threaded
    params = SamplingParams(max_tokens=1, truncate_prompt_tokens=8)
    async for output in llm.generate("word " * 2000, params, "a"):
        assert output.prompt == "word " * 2000
    assert len(core.seen[0].prompt_token_ids) == 8


async def test_calls_are_answered_while_requests_run(
    threaded: tuple[AsyncLLM, ScriptedCore],
) -> None:
    llm, _ = threaded
    stream = llm.generate([5], deltas(max_tokens=900), "a")
    await anext(stream)
    assert await llm.call("echo", 1, "b") == [[1, "b"]]
    assert await llm.reset_prefix_cache() is False
    with pytest.raises(NotAvailable):
        await llm.call("wash")
    await stream.aclose()


async def test_a_failing_core_ends_every_request_with_its_error(
    threaded: tuple[AsyncLLM, ScriptedCore],
) -> None:
    llm, core = threaded
    tasks = [
        asyncio.create_task(tokens_of(llm, f"r{i}", deltas(max_tokens=900))) for i in range(20)
    ]
    await until(lambda: len(core.requests) == 20)
    call = asyncio.create_task(llm.call("crash"))
    results = await asyncio.wait_for(asyncio.gather(*tasks, call, return_exceptions=True), HANG_S)
    assert all(isinstance(result, EngineDeadError) for result in results)
    assert llm.errored
    with pytest.raises(EngineDeadError):
        await llm.check_health()
    with pytest.raises(EngineDeadError):
        await tokens_of(llm, "later", deltas())


# -- the core in its own process -------------------------------------------------------------------


@pytest.mark.engine
async def test_a_killed_core_process_ends_every_request(
    config: VllmConfig,
) -> None:
    client = ProcessClient(config, make_slow_core)
    llm = AsyncLLM(config, client)
    try:
        assert await tokens_of(llm, "warm", deltas(max_tokens=3)) == [100, 101, 102]
        assert await llm.call("echo", [1, 2]) == [[[1, 2]]]
        tasks = [
            asyncio.create_task(tokens_of(llm, f"r{i}", deltas(max_tokens=900))) for i in range(50)
        ]
        await asyncio.sleep(0.1)
        os.kill(client.pid, signal.SIGKILL)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {str(result) for result in results} == {
            f"the engine core (process {client.pid}) was killed by SIGKILL"
        }
        with pytest.raises(EngineDeadError):
            await llm.check_health()
    finally:
        llm.shutdown()


@pytest.mark.engine
async def test_shutdown_ends_the_process_and_open_requests(config: VllmConfig) -> None:
    client = ProcessClient(config, make_slow_core)
    llm = AsyncLLM(config, client)
    task = asyncio.create_task(tokens_of(llm, "a", deltas(max_tokens=900)))
    await asyncio.sleep(0.1)
    with pytest.raises(NotAvailable, match="logits_processors"):
        await tokens_of(llm, "b", SamplingParams(logits_processors=[print]))
    llm.shutdown()
    llm.shutdown()
    with pytest.raises(EngineDeadError, match="shut down"):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(client.pid, 0)


@pytest.mark.engine
def test_errors_of_the_start_keep_their_type(config: VllmConfig) -> None:
    with pytest.raises(ConfigError, match=r"--gpu-memory-utilization 0\.1: too little"):
        ProcessClient(config, make_broken_core)
    with pytest.raises(EngineDeadError, match="no such luck"):
        ProcessClient(config, make_crashing_core)


@pytest.mark.engine
def test_a_core_ends_when_its_front_end_is_killed(config: VllmConfig) -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    front = context.Process(target=hold_an_engine, args=(config, sender))
    front.start()
    sender.close()
    core_pid = receiver.recv()
    assert front.pid is not None
    os.kill(front.pid, signal.SIGKILL)
    front.join()
    wait_until(lambda: not is_running(core_pid), "the end of the core after its front end's")


def hold_an_engine(config: VllmConfig, sender: Any) -> None:
    client = ProcessClient(config, make_slow_core)
    sender.send(client.pid)
    time.sleep(HANG_S)


async def test_a_beam_search_is_one_output_with_the_best_first(
    threaded: tuple[AsyncLLM, ScriptedCore],
) -> None:
    llm, core = threaded
    params = BeamSearchParams(beam_width=3, max_tokens=2, ignore_eos=True)
    (output,) = [output async for output in llm.beam_search("Once upon", "beams", params)]
    assert output.finished and output.request_id == "beams"
    scores = [choice.cumulative_logprob for choice in output.outputs]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    for choice in output.outputs:
        assert len(choice.token_ids) == 2 and choice.finish_reason == "length"
        assert choice.text == (await llm.get_tokenizer()).decode(choice.token_ids)
    assert not core.requests and llm.num_open_requests == 0
    with pytest.raises(BadRequest, match="must be BeamSearchParams"):
        await anext(llm.beam_search("a", "b", SamplingParams()))  # type: ignore[arg-type]


async def test_the_engines_facts_can_be_awaited(threaded: tuple[AsyncLLM, ScriptedCore]) -> None:
    llm, _ = threaded
    assert isinstance(llm, EngineClient)
    assert await llm.get_model_config() is llm.vllm_config.model
    assert await llm.get_vllm_config() is llm.vllm_config
    assert not await llm.is_tracing_enabled()
    await llm.do_log_stats()
    assert llm.is_running and not llm.is_stopped and not llm.errored
    llm.shutdown()
    assert llm.is_stopped and isinstance(llm.dead_error, EngineDeadError)
