"""Processor: from a prompt and parameters to requests the engine core need not check again."""

from __future__ import annotations

import copy
import operator
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vllm.config.model import ModelConfig
from vllm.errors import BadRequest, NotAvailable
from vllm.inputs import EMPTY_PROMPT, ParsedPrompt, parse_prompt
from vllm.inputs.text import check_encodable
from vllm.messages.engine import EngineRequest
from vllm.sampling_params import MAX_SEED, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SEQUENCES: Final = 16_384  # of one request: each costs memory before any of them runs
SEED_STRIDE: Final = 0x9E3779B97F4A7C15  # odd, so that all seeds of one request differ
NUM_SEEDS: Final = 2**64


@dataclass(frozen=True, slots=True)
class ProcessedRequest:
    """What one call of generate becomes: a request to the engine core for each sequence."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams  # as given, completed: of the whole call
    arrival_time_s: float  # time.time()
    children: list[EngineRequest]
    trace_headers: Mapping[str, str] | None = None  # W3C trace context of whoever asked


class Processor:
    """Checks everything that a request may get wrong. Not thread-safe."""

    def __init__(
        self,
        model: ModelConfig,
        tokenizer: PreTrainedTokenizerBase | None,
        policy: str = "fcfs",
        copies: range = range(1),
    ) -> None:
        """`copies`: numbers of the copies of the model that requests may name."""
        self.model = model
        self.tokenizer = tokenizer
        self.copies = copies
        self.policy = policy  # of scheduling: only one of them goes by priorities
        # Requests without a seed draw theirs here, so that a run of a program can be repeated.
        self._seeds = random.Random(model.seed)
        self._num_requests = 0

    def default_params(self) -> SamplingParams:
        """What a request without parameters gets: the model's own recommendation."""
        return SamplingParams.from_optional(**self.model.default_sampling_params)

    def process(
        self,
        request_id: str,
        prompt: Any,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        arrival_time_s: float | None = None,
        trace_headers: Mapping[str, str] | None = None,
        data_parallel_rank: int | None = None,
    ) -> ProcessedRequest:
        """`prompt` in any form of vllm.inputs. Raises BadRequest."""
        arrival_time_s = time.time() if arrival_time_s is None else arrival_time_s
        _check_request_id(request_id)
        priority = self._checked_priority(priority)
        parsed = prompt if isinstance(prompt, ParsedPrompt) else parse_prompt(prompt)
        params = self.resolve(params)
        token_ids = parsed.token_ids
        if token_ids is None:
            assert parsed.text is not None
            token_ids = self.encode(parsed.text)
        core = self._core(data_parallel_rank)
        token_ids = truncated(token_ids, params, self.model.max_model_len)
        self._check_prompt(token_ids)
        self._fit(params, len(token_ids))
        children = [
            EngineRequest(
                request_id=self._internal_id(request_id, params, index),
                prompt_token_ids=token_ids,
                params=_child_params(params, index),
                arrival_time_s=arrival_time_s,
                priority=priority,
                cache_salt=parsed.cache_salt,
                core=core,
            )
            for index in range(params.num_sequences)
        ]
        return ProcessedRequest(
            request_id, parsed.text, token_ids, params, arrival_time_s, children, trace_headers
        )

    def resolve(self, params: SamplingParams | None) -> SamplingParams:
        """A complete copy of `params`, checked against the model; the seed is set."""
        if params is None:
            params = self.default_params()
        elif not isinstance(params, SamplingParams):
            raise BadRequest(
                f"sampling_params must be SamplingParams, got a {type(params).__name__}",
                "sampling_params",
            )
        params = copy.copy(params)
        params.__post_init__()  # checks again: a caller may have set fields since construction
        if params.num_sequences > MAX_SEQUENCES:
            name = "n" if params.best_of is None else "best_of"
            raise BadRequest(
                f"{name}={params.num_sequences} is more than the {MAX_SEQUENCES} sequences one "
                "request may have; send several requests",
                name,
            )
        if self.tokenizer is not None:
            params.resolve_bad_words(self.tokenizer)
        else:
            _require_no_tokenizer(params)
            params.detokenize = False
        params.verify(self.model.vocab_size, self.model.max_logprobs, self.model.eos_token_ids)
        if params.seed is None:
            params.seed = self._seeds.randrange(MAX_SEED + 1)
        return params

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens the model begins with."""
        token_ids: list[int] = self._need_tokenizer().encode(text)
        return token_ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, for many: a fast tokenizer uses every core."""
        if not texts:
            return []
        encoded: Mapping[str, list[list[int]]] = self._need_tokenizer()(list(texts))
        return encoded["input_ids"]

    def _need_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise NotAvailable(
                "the engine was started with --skip-tokenizer-init, so prompts must be token ids",
                "prompt",
            )
        return self.tokenizer

    def _internal_id(self, request_id: str, params: SamplingParams, index: int) -> str:
        # With a number, as a caller may use an id again before the core's last word on its earlier
        # use has arrived.
        self._num_requests += 1
        prefix = f"{index}_" if params.num_sequences > 1 else ""
        return f"{prefix}{request_id}:{self._num_requests}"

    def _core(self, data_parallel_rank: int | None) -> int | None:
        """The core that has the copy of the model with this number. Raises BadRequest."""
        if data_parallel_rank is None:
            return None
        if type(data_parallel_rank) is not int or data_parallel_rank not in self.copies:
            raise BadRequest(
                f"data_parallel_rank {data_parallel_rank!r}: this engine has the copies of the "
                f"model from {self.copies.start} to {self.copies.stop - 1}. Name one of them, or "
                "leave it out.",
                "data_parallel_rank",
            )
        return data_parallel_rank - self.copies.start

    def _checked_priority(self, priority: Any) -> int:
        try:
            number = None if isinstance(priority, bool) else operator.index(priority)
        except TypeError:
            number = None
        if number is None or not -MAX_SEED - 1 <= number <= MAX_SEED:
            raise BadRequest(
                f"priority must be an integer of 64 bits, got {priority!r}", "priority"
            )
        if number and self.policy != "priority":
            raise BadRequest(
                f"priority={number} has no effect here: the engine schedules by {self.policy}. "
                "Leave it out, or start the engine with --scheduling-policy priority.",
                "priority",
            )
        return number

    def _check_prompt(self, token_ids: list[int]) -> None:
        if not token_ids:
            raise BadRequest(EMPTY_PROMPT, "prompt")
        limit = self.model.max_model_len
        if len(token_ids) >= limit:
            raise BadRequest(
                f"the prompt has {len(token_ids)} tokens; this engine accepts {limit - 1}, as "
                f"this model's maximum context length is {limit} tokens, prompt and output "
                "together. Shorten it, set truncate_prompt_tokens, or raise --max-model-len.",
                "prompt",
            )
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self.model.vocab_size:
            raise BadRequest(
                f"the prompt has token id {low if low < 0 else high}, which is out of vocabulary; "
                f"the model's are 0 to {self.model.vocab_size - 1}",
                "prompt",
            )

    def _fit(self, params: SamplingParams, num_prompt_tokens: int) -> None:
        """Bound numbers by the model, so that they also fit the wire and the engine's arrays."""
        room = self.model.max_model_len - num_prompt_tokens
        if params.min_tokens > room:
            raise BadRequest(
                f"min_tokens={params.min_tokens} cannot be reached: {num_prompt_tokens} prompt "
                f"tokens leave room for {room} of --max-model-len {self.model.max_model_len}",
                "min_tokens",
            )
        params.max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        params.top_k = min(params.top_k, self.model.vocab_size)


def truncated(token_ids: list[int], params: SamplingParams, max_model_len: int) -> list[int]:
    """The last tokens, as many as `truncate_prompt_tokens` says. Raises BadRequest."""
    keep = params.truncate_prompt_tokens
    if keep is None:
        return token_ids
    limit = max_model_len - 1
    if keep > limit:
        raise BadRequest(
            f"truncate_prompt_tokens={keep} is more than the {limit} prompt tokens this engine "
            "accepts. Use less, -1 for what fits, or raise --max-model-len.",
            "truncate_prompt_tokens",
        )
    if keep == -1:
        if len(token_ids) <= limit:
            return token_ids
        # Room for the output, unless more was asked for than there can be; but never less than
        # half of the context for the prompt: of one token nothing sensible continues.
        room = max_model_len - (params.max_tokens or 1)
        keep = max(room, max_model_len // 2, 1) if room > 0 else limit
    return token_ids[-keep:]


def _child_params(params: SamplingParams, index: int) -> SamplingParams:
    """Parameters of one sequence of several; the first has the seed it would have alone."""
    if params.num_sequences == 1:
        return params
    assert params.seed is not None
    child = copy.copy(params)
    child.seed = _child_seed(params.seed, index)
    if params.num_sequences > params.n and params.logprobs is None:
        child.logprobs = 0  # to tell which are best
    if index > 0:
        child.prompt_logprobs = None  # the same for all
    child.n, child.best_of = 1, None
    return child


def _child_seed(seed: int, index: int) -> int:
    """An int64 that no other child has, and never -1, which means none where it is decoded."""
    child = (seed + index * SEED_STRIDE + NUM_SEEDS // 2) % NUM_SEEDS - NUM_SEEDS // 2
    return child if child != -1 else _child_seed(seed, MAX_SEQUENCES)


def _check_request_id(request_id: Any) -> None:
    if not isinstance(request_id, str):
        raise BadRequest(f"request_id must be text, got {request_id!r}", "request_id")
    check_encodable("request_id", request_id)


def _require_no_tokenizer(params: SamplingParams) -> None:
    for name, value in (
        ("stop", params.stop),
        ("bad_words", params.bad_words),
        ("structured_outputs", params.structured_outputs),
    ):
        if value:
            raise NotAvailable(
                f"{name} needs a tokenizer, and the engine was started with --skip-tokenizer-init. "
                "Use token ids instead, or leave it out.",
                name,
            )
