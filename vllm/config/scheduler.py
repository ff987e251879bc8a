"""What runs in a step, and how many steps run ahead."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.config.kinds import INT
from vllm.config.option import option

MAX_DEPTH = 64  # steps in flight; each may waste a token per request that stops


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    max_num_seqs: int = option(128, low=1, help="Most sequences that run at the same time.")
    max_num_batched_tokens: int = option(
        None,
        kind=INT,
        low=1,
        auto="2048, or enough for the longest prompt without chunked prefill",
        help="Most tokens computed in one step. More: faster prompts; fewer: steadier output of "
        "the requests that are already running.",
    )
    enable_chunked_prefill: bool = option(
        True, help="Compute long prompts in pieces, next to the requests that are generating."
    )
    policy: str = option(
        "fcfs",
        choices=("fcfs", "priority"),
        flag="--scheduling-policy",
        help="fcfs: in order of arrival; priority: in order of the requests' priority, lowest "
        "first.",
    )
    pipeline_depth: int = option(
        None,
        kind=INT,
        low=1,
        high=MAX_DEPTH,
        auto="the device",
        help="Steps in flight. 1: each step waits for the tokens of the one before; 2 and more "
        "hide the work of the host behind the device.",
    )
    pipeline_chunk_tokens: int = option(
        None,
        kind=INT,
        low=1,
        auto="the device",
        help="With pipeline stages, a step computes a part of the waiting prompts, so that all "
        "stages have as much to do: at least this many tokens. --max-num-batched-tokens stays the "
        "most; as much here: steps are filled as without stages.",
    )
    long_prefill_token_threshold: int = option(
        0,
        low=0,
        help="A prompt is long, and computed in pieces of at most this size, from this many tokens "
        "on; 0: none is.",
    )
    max_num_partial_prefills: int = option(
        1, low=1, help="Most prompts computed in pieces at the same time."
    )
    max_long_partial_prefills: int = option(
        1, low=1, help="Most long prompts among those computed in pieces at the same time."
    )
    stream_interval: int = option(
        1,
        low=1,
        help="Tokens a streaming request gathers before each message; the first is immediate.",
    )
