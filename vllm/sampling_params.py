"""What a request may ask of generation: how tokens are drawn, when it ends, what it returns."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, IntEnum
from typing import Any, Final, Protocol

import msgspec

from vllm.errors import BadRequest, NotAvailable
from vllm.inputs.text import check_encodable
from vllm.structured_params import GuidedDecodingParams as GuidedDecodingParams
from vllm.structured_params import StructuredOutputsParams as StructuredOutputsParams

# Below this a temperature divides logits into overflow; such a row takes its most likely token.
GREEDY_TEMPERATURE: Final = 1e-5
MAX_SEED: Final = 2**63 - 1
# Of temperature, penalty and bias, each of which may meet the others: beyond it logits overflow.
MAX_FACTOR: Final = 1e6
# Every token's text is compared with all of them.
MAX_STOP_STRINGS: Final = 1024
MAX_STOP_CHARS: Final = 4096  # of one of them

# (output_token_ids, logits [V]) -> logits [V], or with prompt_token_ids before the two.
LogitsProcessor = Callable[..., Any]


class SamplingType(IntEnum):
    GREEDY = 0
    RANDOM = 1
    RANDOM_SEED = 2


class RequestOutputKind(Enum):
    CUMULATIVE = 0  # every output holds all text so far
    DELTA = 1  # every output holds what is new
    FINAL_ONLY = 2  # one output, at the end


class Encoder(Protocol):
    """The part of a tokenizer that turning bad words into tokens needs."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


class SamplingParams(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Parameters of one request; a value outside its range raises BadRequest at construction.

    What only the model can tell (token ids, how many log-probabilities it may return) is checked by
    `verify`. `best_of` sequences are generated (n when it is None) and the n best are returned.
    """

    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 and -1: all tokens
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None  # a list once constructed
    stop_token_ids: list[int] | None = None  # a list once constructed
    ignore_eos: bool = False
    max_tokens: int | None = 16  # None: up to the context length
    min_tokens: int = 0
    logprobs: int | None = None  # -1: the whole vocabulary
    prompt_logprobs: int | None = None  # -1: the whole vocabulary
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logits_processors: list[Any] | None = None  # of LogitsProcessor; never crosses a process
    include_stop_str_in_output: bool = False
    truncate_prompt_tokens: int | None = None  # keep the last ones; -1: what the model can take
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None
    guided_decoding: StructuredOutputsParams | None = None  # its older name; None once constructed
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    extra_args: dict[str, Any] | None = None
    bad_words: list[str] | None = None  # a list once constructed
    bad_words_token_ids: list[list[int]] | None = None  # from `resolve_bad_words`

    def __post_init__(self) -> None:
        _normalize(self)
        _check_flags(self)
        _check_counts(self)
        _check_draw(self)
        _check_stops(self)
        _check_tokens(self)
        _check_form(self)
        _check_availability(self)
        if self.is_greedy:
            # A greedy row draws nothing: truncation would only cost time.
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0

    @staticmethod
    def from_optional(**values: Any) -> SamplingParams:
        """As the constructor, but None means the default; `logit_bias` may have string keys.

        Biases are limited to [-100, 100], the range of the OpenAI API.
        """
        unknown = sorted(set(values) - set(SamplingParams.__struct_fields__))
        if unknown:
            raise BadRequest(f"unknown sampling parameters: {', '.join(unknown)}", unknown[0])
        given = {name: value for name, value in values.items() if value is not None}
        if "max_tokens" in values and values["max_tokens"] is None:
            given["max_tokens"] = None
        if "logit_bias" in given:
            given["logit_bias"] = _clamped_bias(given["logit_bias"])
        return SamplingParams(**given)

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def sampling_type(self) -> SamplingType:
        if self.is_greedy:
            return SamplingType.GREEDY
        return SamplingType.RANDOM if self.seed is None else SamplingType.RANDOM_SEED

    @property
    def num_sequences(self) -> int:
        """Sequences to generate, of which the n best are returned."""
        return self.n if self.best_of is None else self.best_of

    @property
    def stop_strings(self) -> list[str]:
        assert isinstance(self.stop, list), self.stop
        return self.stop

    @property
    def output_text_buffer_length(self) -> int:
        """Characters to hold back while streaming: the longest that could begin a stop string."""
        if self.include_stop_str_in_output or not self.stop_strings:
            return 0
        return max(map(len, self.stop_strings)) - 1

    def clone(self) -> SamplingParams:
        """An independent copy; callables are shared."""
        memo = {id(processor): processor for processor in self.logits_processors or ()}
        return copy.deepcopy(self, memo)

    def resolve_bad_words(self, tokenizer: Encoder) -> None:
        """Set `bad_words_token_ids`: each word as it starts a text, and as it follows a space."""
        if not self.bad_words:
            return
        sequences: dict[tuple[int, ...], None] = {}
        for word in self.bad_words:
            for text in (word, " " + word.lstrip()):
                ids = tuple(tokenizer.encode(text, add_special_tokens=False))
                if not ids:
                    raise BadRequest(f"bad_words: {word!r} has no tokens", "bad_words")
                sequences[ids] = None
        self.bad_words_token_ids = [list(ids) for ids in sequences]

    def verify(
        self, vocab_size: int, max_logprobs: int = -1, eos_token_ids: Iterable[int] = ()
    ) -> None:
        """Check what depends on the model. `max_logprobs` -1: no limit but the vocabulary."""
        limit = vocab_size if max_logprobs == -1 else max_logprobs
        for name, wanted in (
            ("logprobs", self.logprobs),
            ("prompt_logprobs", self.prompt_logprobs),
        ):
            count = vocab_size if wanted == -1 else wanted or 0
            if count > limit:
                raise BadRequest(
                    f"{name}={wanted} asks for {count} alternatives per token; this engine gives "
                    f"at most {limit}. Ask for fewer or raise --max-logprobs.",
                    name,
                )
        for field, ids in (
            ("logit_bias", self.logit_bias or ()),
            ("allowed_token_ids", self.allowed_token_ids or ()),
            ("stop_token_ids", self.stop_token_ids or ()),
            ("bad_words", [t for word in self.bad_words_token_ids or () for t in word]),
        ):
            wrong = [t for t in ids if not 0 <= t < vocab_size]
            if wrong:
                raise BadRequest(
                    f"{field} has token ids {wrong[:8]} that are out of vocabulary; the model's "
                    f"are 0 to {vocab_size - 1}",
                    field,
                )
        self._verify_some_token_remains(eos_token_ids)

    def ending_token_ids(self, eos_token_ids: Iterable[int]) -> frozenset[int]:
        """What ends the output, of a model with these end tokens."""
        own = self.stop_token_ids or ()
        return frozenset(own) if self.ignore_eos else frozenset(own).union(eos_token_ids)

    def _verify_some_token_remains(self, eos_token_ids: Iterable[int]) -> None:
        if self.allowed_token_ids is None:
            return
        banned = {word[0] for word in self.bad_words_token_ids or () if len(word) == 1}
        if self.min_tokens > 0:
            banned |= self.ending_token_ids(eos_token_ids)
        if banned.issuperset(self.allowed_token_ids):
            raise BadRequest(
                f"allowed_token_ids holds only tokens that bad_words or min_tokens="
                f"{self.min_tokens} forbid: before min_tokens no token may end the output. Allow "
                "another token, lower min_tokens, or set ignore_eos.",
                "allowed_token_ids",
            )


class BeamSearchParams(msgspec.Struct, omit_defaults=True):
    """Parameters of a beam search; `length_penalty` is the exponent of the length a score is
    divided by. With `early_stopping` it ends when `beam_width` sequences have."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    early_stopping: bool = False

    def __post_init__(self) -> None:
        self.beam_width = _integer("beam_width", self.beam_width, 1)
        self.max_tokens = _integer("max_tokens", self.max_tokens, 1)
        self.temperature = _real("temperature", self.temperature, 0.0)
        # A length to a higher power is no float any more.
        self.length_penalty = _real("length_penalty", self.length_penalty, -20.0, 20.0)
        for name in ("ignore_eos", "include_stop_str_in_output", "early_stopping"):
            _check_flag(name, getattr(self, name))


def refuse_on_wire(value: Any) -> Any:
    """Last resort of a wire encoder (msgspec `enc_hook`): says why `value` cannot be sent."""
    if callable(value):
        raise NotAvailable(
            "logits_processors are Python callables and cannot be sent to an engine in another "
            "process. Use LLM with VLLM_ENABLE_V1_MULTIPROCESSING=0, or logit_bias, "
            "allowed_token_ids or bad_words.",
            "logits_processors",
        )
    raise TypeError(f"cannot encode a {type(value).__name__}")


def _integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    bounds = "" if low is None else f" >= {low}"
    bounds += "" if high is None else f"{' and' if bounds else ''} <= {high}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if (
        number is None
        or isinstance(value, bool)
        or (low is not None and number < low)
        or (high is not None and number > high)
    ):
        raise BadRequest(f"{name} must be an integer{bounds}, got {value!r}", name)
    return number


def _real(name: str, value: Any, low: float | None = None, high: float | None = None) -> float:
    bounds = "" if low is None else f" >= {low:g}"
    bounds += "" if high is None else f"{' and' if bounds else ''} <= {high:g}"
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if (
        not math.isfinite(number)
        or (low is not None and number < low)
        or (high is not None and number > high)
    ):
        raise BadRequest(f"{name} must be a finite number{bounds}, got {value!r}", name)
    return number


def _token_ids(name: str, values: Any) -> list[int]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise BadRequest(f"{name} must be a list of token ids, got {values!r}", name)
    return [_integer(name, value, 0) for value in values]


def _strings(name: str, values: Any) -> list[str]:
    values = [values] if isinstance(values, str) else [] if values is None else values
    if not isinstance(values, Sequence) or not all(isinstance(v, str) for v in values):
        raise BadRequest(f"{name} must be a string or a list of strings, got {values!r}", name)
    if "" in values:
        raise BadRequest(f"{name} holds an empty string, which every text contains", name)
    for value in values:
        check_encodable(name, value)
    return list(values)


def _normalize(p: SamplingParams) -> None:
    p.stop = _strings("stop", p.stop)
    p.bad_words = _strings("bad_words", p.bad_words)
    p.stop_token_ids = (
        [] if p.stop_token_ids is None else _token_ids("stop_token_ids", p.stop_token_ids)
    )
    # The completions API of old lets a client write `true` for one alternative.
    if p.logprobs is True:
        p.logprobs = 1
    if p.prompt_logprobs is True:
        p.prompt_logprobs = 1
    if p.seed == -1:
        p.seed = None
    given_kind: Any = p.output_kind
    if not isinstance(given_kind, RequestOutputKind):
        kinds = ", ".join(kind.name for kind in RequestOutputKind)
        raise BadRequest(f"output_kind must be one of {kinds}, got {given_kind!r}", "output_kind")


def _check_flags(p: SamplingParams) -> None:
    for name in (
        "ignore_eos",
        "detokenize",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "include_stop_str_in_output",
    ):
        _check_flag(name, getattr(p, name))


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be True or False, got {value!r}", name)


def _check_counts(p: SamplingParams) -> None:
    p.n = _integer("n", p.n, 1)
    if p.best_of is not None:
        p.best_of = _integer("best_of", p.best_of, 1)
        if p.best_of < p.n:
            raise BadRequest(f"best_of must be >= n, got best_of={p.best_of}, n={p.n}", "best_of")
        if p.best_of > p.n and p.output_kind is RequestOutputKind.DELTA:
            raise BadRequest(
                f"best_of={p.best_of} with n={p.n} cannot stream: which sequences are best is "
                "known at the end. Set best_of to n, or do not stream.",
                "best_of",
            )
    if p.max_tokens is not None:
        p.max_tokens = _integer("max_tokens", p.max_tokens, 1)
    p.min_tokens = _integer("min_tokens", p.min_tokens, 0)
    if p.max_tokens is not None and p.min_tokens > p.max_tokens:
        raise BadRequest(
            f"min_tokens must be <= max_tokens={p.max_tokens}, got {p.min_tokens}", "min_tokens"
        )
    if p.logprobs is not None:
        p.logprobs = _integer("logprobs", p.logprobs, -1)
    if p.prompt_logprobs is not None:
        p.prompt_logprobs = _integer("prompt_logprobs", p.prompt_logprobs, -1)
    if p.truncate_prompt_tokens is not None:
        p.truncate_prompt_tokens = _integer("truncate_prompt_tokens", p.truncate_prompt_tokens, -1)
        if p.truncate_prompt_tokens == 0:
            raise BadRequest(
                "truncate_prompt_tokens must be >= 1 or -1, got 0", "truncate_prompt_tokens"
            )


def _check_draw(p: SamplingParams) -> None:
    p.presence_penalty = _real("presence_penalty", p.presence_penalty, -2.0, 2.0)
    p.frequency_penalty = _real("frequency_penalty", p.frequency_penalty, -2.0, 2.0)
    p.repetition_penalty = _real(
        "repetition_penalty", p.repetition_penalty, 1 / MAX_FACTOR, MAX_FACTOR
    )
    p.temperature = _real("temperature", p.temperature, 0.0, MAX_FACTOR)
    p.top_p = _real("top_p", p.top_p)
    if not 0.0 < p.top_p <= 1.0:
        raise BadRequest(f"top_p must be in (0, 1], got {p.top_p}", "top_p")
    p.top_k = _integer("top_k", p.top_k, -1)
    p.min_p = _real("min_p", p.min_p, 0.0, 1.0)
    if p.seed is not None:
        p.seed = _integer("seed", p.seed, -MAX_SEED - 1, MAX_SEED)
    if p.is_greedy and p.num_sequences > 1:
        field = "n" if p.best_of is None else "best_of"
        raise BadRequest(
            f"{field} must be 1 with temperature={p.temperature:g}, got {p.num_sequences}: greedy "
            "sequences are all the same. Raise temperature.",
            field,
        )


def _check_stops(p: SamplingParams) -> None:
    if len(p.stop_strings) > MAX_STOP_STRINGS:
        raise BadRequest(
            f"stop has {len(p.stop_strings)} strings; at most {MAX_STOP_STRINGS} can be looked for",
            "stop",
        )
    longest = max(map(len, p.stop_strings), default=0)
    if longest > MAX_STOP_CHARS:
        raise BadRequest(
            f"stop has a string of {longest} characters; at most {MAX_STOP_CHARS} are looked for",
            "stop",
        )
    if p.stop and not p.detokenize:
        raise BadRequest(
            "stop strings are found in text, and detokenize=False makes none; use stop_token_ids",
            "stop",
        )


def _check_tokens(p: SamplingParams) -> None:
    if p.allowed_token_ids is not None:
        p.allowed_token_ids = _token_ids("allowed_token_ids", p.allowed_token_ids)
        if not p.allowed_token_ids:
            raise BadRequest(
                "allowed_token_ids is empty: no token could be drawn. Leave it out to allow all.",
                "allowed_token_ids",
            )
    if p.logit_bias is not None:
        if not isinstance(p.logit_bias, dict):
            raise BadRequest(
                f"logit_bias must map token ids to numbers, got {p.logit_bias!r}", "logit_bias"
            )
        p.logit_bias = {
            _integer("logit_bias", token, 0): _real("logit_bias", bias, -MAX_FACTOR, MAX_FACTOR)
            for token, bias in p.logit_bias.items()
        }
    if p.bad_words_token_ids is not None:
        p.bad_words_token_ids = [_token_ids("bad_words", ids) for ids in p.bad_words_token_ids]


def _check_form(p: SamplingParams) -> None:
    if p.guided_decoding is not None:
        if p.structured_outputs is not None:
            raise BadRequest(
                "guided_decoding is an older name of structured_outputs; give one of them",
                "guided_decoding",
            )
        p.structured_outputs, p.guided_decoding = p.guided_decoding, None
    form: Any = p.structured_outputs
    if form is None:
        return
    if isinstance(form, dict):
        try:
            form = p.structured_outputs = StructuredOutputsParams(**form)
        except TypeError as error:  # a keyword there is not
            raise BadRequest(f"structured_outputs: {error}", "structured_outputs") from None
    if not isinstance(form, StructuredOutputsParams):
        raise BadRequest(
            f"structured_outputs must be StructuredOutputsParams, got {form!r:.100}",
            "structured_outputs",
        )
    form.__post_init__()  # checks again: a caller may have set fields since construction
    if p.allowed_token_ids is not None:
        raise BadRequest(
            "allowed_token_ids and structured_outputs exclude each other: no token may be left "
            "that both allow. Drop one.",
            "allowed_token_ids",
        )


def _check_availability(p: SamplingParams) -> None:
    if p.extra_args:
        raise NotAvailable(
            f"extra_args={p.extra_args!r}: nothing in this engine reads extra arguments; leave "
            "them out",
            "extra_args",
        )
    for processor in p.logits_processors or ():
        if not callable(processor):
            raise BadRequest(
                f"logits_processors must be callables, got {processor!r}", "logits_processors"
            )


def _clamped_bias(bias: Any) -> dict[int, float]:
    if not isinstance(bias, dict):
        raise BadRequest(f"logit_bias must map token ids to numbers, got {bias!r}", "logit_bias")
    clamped = {}
    for token, value in bias.items():
        try:
            token_id = _integer("logit_bias", int(token) if isinstance(token, str) else token, 0)
        except ValueError:
            raise BadRequest(
                f"logit_bias has key {token!r}; keys are token ids", "logit_bias"
            ) from None
        clamped[token_id] = min(100.0, max(-100.0, _real("logit_bias", value)))
    return clamped
