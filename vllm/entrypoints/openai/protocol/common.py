"""What requests of several endpoints share. Requests are pydantic models, so that they are checked
field by field and described in the OpenAPI schema; responses are msgspec structs, since a stream
encodes one per token."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, model_validator

from vllm.errors import BadRequest, NotAvailable
from vllm.inputs.text import check_encodable
from vllm.logger import init_logger
from vllm.sampling_params import RequestOutputKind, SamplingParams

logger = init_logger(__name__)
_warned_fields: set[tuple[str, str]] = set()

# Fields of SamplingParams that requests carry under the same name.
SAMPLING_FIELDS = (
    "n",
    "best_of",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "truncate_prompt_tokens",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
)

# Of these, what a beam search goes by.
BEAM_FIELDS = frozenset(
    "n best_of ignore_eos include_stop_str_in_output skip_special_tokens "
    "spaces_between_special_tokens truncate_prompt_tokens".split()
)
# What it cannot go by, with the values that ask for nothing.
IGNORED_BY_BEAMS: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "stop": ("", []),
    "stop_token_ids": ([],),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "allowed_token_ids": (),
    "bad_words": ([],),
}

TEXT_FORMATS = (None, "text")


class RequestModel(BaseModel):
    """A request body. Unknown fields are kept, and logged once each."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _check_values(cls, body: Any) -> Any:
        """Every text and number at any depth: fields typed Any are not checked by pydantic."""
        todo: list[tuple[Any, Any]] = []
        if isinstance(body, dict):
            todo += [(name, part) for name, value in body.items() for part in (name, value)]
        while todo:
            name, value = todo.pop()
            if isinstance(value, str):
                check_encodable(ascii(name)[1:-1], value)
            elif isinstance(value, float) and not math.isfinite(value):
                shown = ascii(name)[1:-1]
                raise BadRequest(f"{shown}: numbers must be finite, got {value}", shown)
            elif isinstance(value, list):
                todo += [(name, item) for item in value if not isinstance(item, int)]
            elif isinstance(value, dict):
                todo += [(name, item) for pair in value.items() for item in pair]
        return body

    def warn_about_unknown_fields(self) -> None:
        for name in self.model_extra or ():
            key = (type(self).__name__, name)
            if key not in _warned_fields and len(_warned_fields) < 1000:
                _warned_fields.add(key)
                logger.warning("%s: unknown field %r is ignored", *key)


class StreamOptions(BaseModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema", "structural_tag"]


class SharedRequest(RequestModel):
    """Fields that mean the same wherever text is generated, and are passed on as they are.

    None: the default of the model or the engine.
    """

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: dict[str, Any] | None = None
    priority: int | None = None
    cache_salt: str | None = None
    user: str | None = None


class GenerationRequest(SharedRequest):
    """Fields of every endpoint that generates. None: the default of the model or the engine."""

    # Per endpoint: fields that no engine of ours serves yet, by the remedy to offer.
    unavailable: ClassVar[Mapping[str, str]] = {
        "logits_processors": "use logit_bias, allowed_token_ids or bad_words",
        "kv_transfer_params": "leave it out",
        "vllm_xargs": "leave it out",
    }

    # Whether chunks of a stream have room for them.
    streams_prompt_logprobs: ClassVar[bool] = False

    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    length_penalty: float | None = None
    use_beam_search: bool | None = False
    early_stopping: bool | None = False
    prompt_logprobs: int | None = None

    request_id: str | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None

    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: str | None = None
    guided_whitespace_pattern: str | None = None
    structural_tag: str | None = None
    logits_processors: list[Any] | None = None
    kv_transfer_params: dict[str, Any] | None = None
    vllm_xargs: dict[str, Any] | None = None

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_continuous_usage(self) -> bool:
        return self.wants_usage and bool(self.stream_options.continuous_usage_stats)  # type: ignore[union-attr]

    def refuse_what_is_unavailable(self) -> None:
        """Raises NotAvailable for a field whose value would have to be ignored."""
        for name, remedy in self.unavailable.items():
            value = getattr(self, name)
            if value:
                raise NotAvailable(f"{name} is not available on this server; {remedy}", name)

    def sampling_params(self, defaults: Mapping[str, Any], **values: Any) -> SamplingParams:
        """`values`, the form of the output among them, and the request's own fields, over
        `defaults`, the model's own.

        `max_tokens` of the defaults is a limit, not only what counts where a request says nothing.
        """
        merged = {name: defaults[name] for name in SAMPLING_FIELDS if name in defaults}
        for name in SAMPLING_FIELDS:
            value = getattr(self, name)
            if value is not None:
                merged[name] = value
        limits = [values.get("max_tokens"), defaults.get("max_tokens")]
        values["max_tokens"] = min((n for n in limits if n is not None), default=None)
        if self.use_beam_search:
            self._check_beams(values)
            # A search draws nothing: neither a seed nor the sampling temperature matters to it.
            merged = {name: value for name, value in merged.items() if name in BEAM_FIELDS}
        kind = RequestOutputKind.DELTA if self.stream else RequestOutputKind.FINAL_ONLY
        return SamplingParams.from_optional(**merged, **values, output_kind=kind)

    def _check_beams(self, values: Mapping[str, Any]) -> None:
        """Raises BadRequest for what would have to be ignored."""
        if self.stream:
            raise BadRequest(
                "use_beam_search cannot stream: which beam is best is known at the end. Leave out "
                "one of use_beam_search and stream.",
                "use_beam_search",
            )
        given = {name: getattr(self, name) for name in IGNORED_BY_BEAMS}
        for name, value in {**given, "prompt_logprobs": values.get("prompt_logprobs")}.items():
            if value is not None and value not in IGNORED_BY_BEAMS.get(name, ()):
                raise BadRequest(
                    f"{name} has no effect on a beam search; leave out {name} or use_beam_search",
                    name,
                )


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: int | None = None


class ErrorResponse(msgspec.Struct):
    error: ErrorDetail


class PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int | None
    decoded_token: str | None


# One entry per prompt position, the alternatives by token id; None at the first.
PromptLogprobsField = list[dict[str, PromptLogprob] | None]


def random_id() -> str:
    return uuid.uuid4().hex


def now_s() -> int:
    return int(time.time())
