"""What the output processor measures per step, and who listens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from vllm.messages.engine import EngineStats, FinishReason


class FinishedRequest(NamedTuple):
    reason: FinishReason
    e2e_s: float  # arrival to last token
    queue_s: float  # arrival to first scheduled
    prefill_s: float  # first scheduled to first token
    decode_s: float  # first token to last token
    num_prompt_tokens: int
    num_generation_tokens: int
    max_tokens: int
    num_cached_tokens: int = 0  # of the prompt, from the prefix cache


class FinishedCall(NamedTuple):
    """A call of generate all of whose sequences have ended."""

    n: int  # sequences asked for
    longest: int  # tokens of its longest sequence


@dataclass(slots=True)
class IterationStats:
    """Latencies seen by the front end in one batch of updates, seconds."""

    time_to_first_token_s: list[float] = field(default_factory=list)
    inter_token_s: list[float] = field(default_factory=list)
    finished: list[FinishedRequest] = field(default_factory=list)
    calls: list[FinishedCall] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0


class StatLogger(Protocol):
    def record(self, engine: EngineStats, iteration: IterationStats, core: int = 0) -> None:
        """What a step of a core did; `core` counts those behind the front end."""
        ...
