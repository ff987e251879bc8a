"""Messages between a front end (LLM, AsyncLLM) and the engine core, in-process or over a socket.

All are msgspec structs: encoded with msgpack, never pickled.
"""

from __future__ import annotations

import enum
from typing import Any, Final

import msgspec
import numpy as np

from vllm.messages.facts import RankMemory
from vllm.messages.step import NO_ROWS, LogprobArrays
from vllm.sampling_params import SamplingParams

NEWS_BYTES: Final = 8  # enough to tell the blocks of a cache apart


class FinishReason(enum.IntEnum):
    STOP = 0  # a stop token or stop string
    LENGTH = 1  # max_tokens or max_model_len
    ABORT = 2  # by the client
    ERROR = 3  # the engine could not go on with this request
    REJECTED = 4  # nobody could: what it asks for cannot be done

    def __str__(self) -> str:
        return self.name.lower()


class EngineRequest(msgspec.Struct, frozen=True, tag=True):
    """One sequence to generate (n > 1 has become n of these)."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams  # seed, max_tokens and stop_token_ids resolved by the Processor
    arrival_time_s: float  # time.time()
    priority: int = 0  # lower runs first, under --scheduling-policy priority
    cache_salt: str | None = None
    core: int | None = None  # the only one that may serve it; None: any
    num_uncached: int = 0  # prompt tokens that the core will compute, as its sender estimates


class Abort(msgspec.Struct, frozen=True, tag=True):
    request_ids: list[str]


class Call(msgspec.Struct, frozen=True, tag=True):
    """A control-plane call of a method of EngineCore; answered by a CallResult of the same id."""

    call_id: int
    method: str
    args: list[Any] = []


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    with_others: bool = False  # once all are to end that share experts with the core


class BeginWave(msgspec.Struct, frozen=True, tag=True):
    """Of a core to others that share experts with it: it has work; see vllm.engine.wave."""

    number: int
    group: int = 0  # in which life of these cores


ToEngine = EngineRequest | Abort | Call | Shutdown | BeginWave


class RequestUpdate(msgspec.Struct, omit_defaults=True):
    """What one committed step did to one request."""

    request_id: str
    token_ids: list[int]  # new ones, in order; may be empty
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None  # the stop token, when it is not eos
    error: str | None = None  # with FinishReason.ERROR and REJECTED
    logprobs: LogprobArrays | None = None  # one entry per new token
    prompt_logprobs: LogprobArrays | None = None  # the next prompt positions, in order, from 1
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache; with the first update
    queue_s: float = 0.0  # arrival to first scheduled; with the first update
    slot: int = 0  # of the request from now on, with tokens; 0: not said


class EngineStats(msgspec.Struct):
    """State and counters of the engine core after a step; counters only ever grow."""

    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0  # share of blocks referenced by requests
    num_blocks: int = 0
    num_cached_blocks: int = 0
    prefix_queries: int = 0  # tokens looked up
    prefix_hits: int = 0  # tokens found
    num_preemptions: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0  # computed
    num_generation_tokens: int = 0
    step_s: float = 0.0  # the last step, submit to commit
    num_pending_tokens: int = 0  # `num_uncached` of requests that have not drawn a token


class CacheNews(msgspec.Struct):
    """How the prefix cache of a core has changed: NEWS_BYTES of the hash of each block."""

    added: bytes = b""
    removed: bytes = b""


class StepUpdates(msgspec.Struct, tag=True):
    """What one committed step did. Requests that got a token and nothing else, which are nearly all
    in nearly all steps, are entries of two arrays, under the slot that their last update named."""

    updates: list[RequestUpdate]
    stats: EngineStats
    time_s: float  # time.monotonic() at commit
    slots: np.ndarray = NO_ROWS  # [R] int32
    token_ids: np.ndarray = NO_ROWS  # [R] int32
    core: int = 0  # which one of those behind a front end
    num_taken: int = 0  # requests that the core has had from this front end, before the step
    news: CacheNews | None = None  # since the last message to this front end


class CallResult(msgspec.Struct, frozen=True, tag=True):
    call_id: int
    value: Any = None
    error: str | None = None
    core: int = 0


class EngineReady(msgspec.Struct, frozen=True, tag=True):
    """The first message of an engine core: it is up, and this is what it measured."""

    num_blocks: int
    block_size: int
    start_s: float
    ranks: tuple[RankMemory, ...] = ()  # by rank
    counts_shapes: bool = False  # the device prepares shapes, and `launch_shapes` tells of them
    pid: int = 0  # of its process; 0: it runs in that of the front end
    life: int = 0  # how often the core has been started before
    endpoint: str = ""  # where front ends of other machines reach it


class EngineDead(msgspec.Struct, frozen=True, tag=True):
    """The last message of an engine core that failed."""

    error: str
    kind: str = ""  # the error's class, if it is one of vllm.errors that the user can act on
    is_final: bool = False  # whether nobody starts the core again


FromEngine = StepUpdates | CallResult | EngineReady | EngineDead
