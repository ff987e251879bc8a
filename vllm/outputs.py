"""What callers get back: text, tokens and log-probabilities of a request, with its times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from vllm.logger import init_logger

logger = init_logger(__name__)


# Of these there are thousands per step, which the garbage collector need not walk through.
class Logprob(msgspec.Struct, gc=False):
    logprob: float
    rank: int | None = None  # 1-based, in the whole vocabulary
    decoded_token: str | None = None  # None without a tokenizer, and with detokenize=False


SampleLogprobs = list[
    dict[int, Logprob]
]  # one entry per output token; the token itself comes first
PromptLogprobs = list[dict[int, Logprob] | None]  # one per prompt token; the first has none


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request, in seconds as `time.time()` gives them; None: not come to that."""

    arrival_time: float
    last_token_time: float | None = None
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    time_in_queue: float | None = None  # seconds from arrival to first scheduled
    finished_time: float | None = None
    # Seconds, of single requests: nobody measures these, as a step serves many.
    scheduler_time: float | None = None
    model_forward_time: float | None = None
    model_execute_time: float | None = None

    # By the names of newer releases of vLLM, whose clock is another: differences mean the same.

    @property
    def queued_ts(self) -> float:
        return self.arrival_time

    @property
    def scheduled_ts(self) -> float:
        return self.first_scheduled_time or 0.0

    @property
    def first_token_ts(self) -> float:
        return self.first_token_time or 0.0

    @property
    def last_token_ts(self) -> float:
        return self.last_token_time or 0.0

    @property
    def first_token_latency(self) -> float:
        """Seconds from arrival to the first token; 0: there is none yet."""
        return self.first_token_time - self.arrival_time if self.first_token_time else 0.0


@dataclass(slots=True)
class CompletionOutput:
    """One generated sequence, or with RequestOutputKind.DELTA what is new of it."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None  # of the whole sequence; None without logprobs
    logprobs: SampleLogprobs | None = None
    finish_reason: str | None = None  # stop, length, abort or error; None while it goes on
    stop_reason: int | str | None = None  # the stop token or string; the message of an error
    lora_request: None = None  # there are no adapters

    def finished(self) -> bool:
        return self.finish_reason is not None

    def extend(self, newer: CompletionOutput) -> None:
        """Append the delta that follows this one."""
        self.text += newer.text
        self.token_ids = self.token_ids + newer.token_ids
        self.cumulative_logprob = newer.cumulative_logprob
        if self.logprobs is not None and newer.logprobs is not None:
            self.logprobs = self.logprobs + newer.logprobs
        self.finish_reason = newer.finish_reason
        self.stop_reason = newer.stop_reason


@dataclass(slots=True, init=False)
class RequestOutput:
    """State of a request: all of it, or with RequestOutputKind.DELTA what is new."""

    request_id: str
    prompt: str | None  # None for a prompt of token ids
    prompt_token_ids: list[int]
    prompt_logprobs: PromptLogprobs | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None
    # Of features to come, where programs written for vLLM look for them.
    lora_request: None
    encoder_prompt: None
    encoder_prompt_token_ids: None
    num_cached_tokens: int | None  # prompt tokens found in the prefix cache
    multi_modal_placeholders: None
    kv_transfer_params: None

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        prompt_logprobs: PromptLogprobs | None = None,
        outputs: list[CompletionOutput] | None = None,
        finished: bool = False,
        metrics: RequestMetrics | None = None,
        lora_request: None = None,
        encoder_prompt: None = None,
        encoder_prompt_token_ids: None = None,
        num_cached_tokens: int | None = None,
        *,
        multi_modal_placeholders: None = None,
        kv_transfer_params: None = None,
        **unknown: Any,
    ) -> None:
        """`unknown` are fields of another release: they are ignored, and logged once."""
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.prompt_logprobs = prompt_logprobs
        self.outputs = [] if outputs is None else outputs
        self.finished = finished
        self.metrics = metrics
        self.lora_request = lora_request
        self.encoder_prompt = encoder_prompt
        self.encoder_prompt_token_ids = encoder_prompt_token_ids
        self.num_cached_tokens = num_cached_tokens
        self.multi_modal_placeholders = multi_modal_placeholders
        self.kv_transfer_params = kv_transfer_params
        if unknown:
            names = ", ".join(sorted(unknown))
            logger.warning_once("RequestOutput: unknown fields are ignored: %s", names)

    def extend(self, newer: RequestOutput) -> None:
        """Append the delta that follows this one."""
        known = {output.index: output for output in self.outputs}
        for output in newer.outputs:
            if output.index in known:
                known[output.index].extend(output)
            else:
                self.outputs.append(output)
        if newer.prompt_logprobs is not None:
            self.prompt_logprobs = newer.prompt_logprobs
        self.finished = newer.finished
        self.metrics = newer.metrics
        self.num_cached_tokens = newer.num_cached_tokens


@dataclass(slots=True)
class BeamSearchSequence:
    """One beam; `tokens` and `text` start with the prompt."""

    tokens: list[int]
    logprobs: SampleLogprobs  # of the tokens after the prompt
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """The best beams of one prompt, best first."""

    sequences: list[BeamSearchSequence]


# Results of pooling models, which no engine runs yet: programs name the classes in annotations.


@dataclass(slots=True)
class PoolingOutput:
    data: Any  # a tensor


@dataclass(slots=True)
class EmbeddingOutput:
    embedding: list[float]


@dataclass(slots=True)
class ClassificationOutput:
    probs: list[float]


@dataclass(slots=True)
class ScoringOutput:
    score: float


OutputT = TypeVar("OutputT")


@dataclass(slots=True)
class PoolingRequestOutput(Generic[OutputT]):
    request_id: str
    outputs: OutputT
    prompt_token_ids: list[int]
    finished: bool


class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    pass


class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    pass


class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    pass
