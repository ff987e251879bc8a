"""Compiles forms in threads of its own, so that a step never waits for one."""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

import msgspec
import numpy as np

from vllm.config.structured import StructuredOutputsConfig
from vllm.logger import init_logger
from vllm.structured_output.grammar import (
    CompiledGrammar,
    Grammar,
    GrammarError,
    GuardedGrammar,
    as_refusal,
    num_words,
)
from vllm.structured_output.reasoning import AfterReasoning, ReasoningTokens, token_texts
from vllm.structured_params import ReasoningFirst, StructuredOutputsParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = init_logger(__name__)

NUM_THREADS: Final = 2
MAX_CACHED: Final = 256
# A form that takes longer is given up; its thread ends by itself, as the text is of bounded size.
DEADLINE_S: Final = 8.0
# The libraries recurse as deep as a form is nested or its rules refer to each other, and end the
# process at the end of the stack: 128 Ki characters need less than 64 MiB of this. Only what is
# used becomes memory.
STACK_BYTES: Final = 128 * 2**20

P = ParamSpec("P")
T = TypeVar("T")
Key = tuple[str | bool | None, ...]


class Backend(Protocol):
    name: str

    def rejects(self, params: StructuredOutputsParams) -> str | None: ...
    def compile(self, params: StructuredOutputsParams) -> CompiledGrammar: ...


class PendingGrammar:
    """A form on its way to becoming a Grammar."""

    def __init__(
        self,
        future: Future[CompiledGrammar],
        params: StructuredOutputsParams,
        mask_words: int,
        clock: Callable[[], float],
        tokens: Future[ReasoningTokens] | None = None,
    ) -> None:
        self.future = future
        self.tokens = tokens
        self._params = params
        self._mask_words = mask_words
        self._clock = clock
        self._deadline_s = clock() + DEADLINE_S

    @property
    def missing(self) -> Future[Any] | None:
        """What is not there yet."""
        if not self.future.done():
            return self.future
        return None if self.tokens is None or self.tokens.done() else self.tokens

    def poll(self) -> Grammar | None:
        """The grammar, once it is there. Raises GrammarError if there will be none."""
        if self.missing is None:
            try:
                return self._start(self.future.result())
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a panic of Rust is not an Exception
                raise as_refusal(error) from error
        if self._clock() >= self._deadline_s:
            raise GrammarError(
                f"{self._params.kind} takes more than {DEADLINE_S:g} seconds to compile; simplify "
                "it: smaller bounds of repetition, fewer alternatives"
            )
        return None

    def _start(self, compiled: CompiledGrammar) -> Grammar:
        grammar = compiled.start()
        first = np.zeros(self._mask_words, np.int32)
        grammar.fill_mask(first)
        if not first.any():
            raise GrammarError(f"{self._params.kind}: there is no text that meets it")
        if self.tokens is None or self._params.reasoning is None:
            return GuardedGrammar(grammar)
        return AfterReasoning(
            lambda: GuardedGrammar(compiled.start()),
            self.tokens.result(),
            self._params.reasoning,
        )


class GrammarCompiler:
    """Compiled forms by what was asked for; owned by the scheduler. Not thread-safe."""

    def __init__(
        self,
        config: StructuredOutputsConfig,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        load_tokenizer: Callable[[], PreTrainedTokenizerBase],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(t for t in eos_token_ids if 0 <= t < vocab_size)
        self._load_tokenizer = functools.cache(load_tokenizer)
        self._clock = clock
        self.mask_words = num_words(vocab_size)
        self._cache: OrderedDict[Key, Future[CompiledGrammar]] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None
        self._backends: Future[dict[str, Backend]] | None = None
        # Of the one parser of reasoning that a server has.
        self._markers: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._tokens: Future[ReasoningTokens] | None = None

    def submit(self, params: StructuredOutputsParams) -> PendingGrammar:
        """Start compiling, unless that has been done."""
        params = self._completed(params)
        backend = params.backend or self.config.backend
        key = (
            backend,
            params.kind,
            params.spec,
            params.disable_any_whitespace,
            params.disable_additional_properties,
            params.whitespace_pattern,
        )
        future = self._cache.get(key)
        if future is None or _has_failed(future):
            future = self._cache[key] = self._start(backend, params)
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        tokens = None if params.reasoning is None else self._tokens_of(params.reasoning)
        return PendingGrammar(future, params, self.mask_words, self._clock, tokens)

    def _tokens_of(self, reasoning: ReasoningFirst) -> Future[ReasoningTokens]:
        markers = reasoning.starts, reasoning.ends
        if self._markers != markers or self._tokens is None or _has_failed(self._tokens):
            assert self._threads is not None, "the form that comes after is being compiled"
            self._markers = markers
            self._tokens = self._threads.submit(self._find_tokens, *markers)
        return self._tokens

    def _find_tokens(self, starts: Sequence[str], ends: Sequence[str]) -> ReasoningTokens:
        texts = token_texts(self._load_tokenizer(), self._vocab_size)
        return ReasoningTokens(texts, starts, ends)

    def _completed(self, params: StructuredOutputsParams) -> StructuredOutputsParams:
        """With the engine's settings where the request has none."""
        config = self.config
        return msgspec.structs.replace(
            params,
            disable_any_whitespace=params.disable_any_whitespace or config.disable_any_whitespace,
            disable_additional_properties=(
                params.disable_additional_properties or config.disable_additional_properties
            ),
        )

    def wait(self, pending: Iterable[PendingGrammar], timeout_s: float) -> None:
        """Until the first of them is ready."""
        missing = [one.missing for one in pending]
        if None not in missing:
            wait(filter(None, missing), timeout_s, FIRST_COMPLETED)

    def stop(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, backend: str, params: StructuredOutputsParams) -> Future[CompiledGrammar]:
        if self._threads is None:
            self._threads = _DeepThreads(NUM_THREADS, thread_name_prefix="grammar")
        if self._backends is None:
            self._backends = self._threads.submit(self._make_backends)
        return self._threads.submit(_compile, self._backends, backend, params)

    def _make_backends(self) -> dict[str, Backend]:
        # Imported here, in a thread: they take a second that most engines never need.
        from vllm.structured_output.guidance_backend import GuidanceBackend
        from vllm.structured_output.xgrammar_backend import XGrammarBackend

        facts = (self._load_tokenizer(), self._vocab_size, self._eos_token_ids)
        backends: dict[str, Backend] = {XGrammarBackend.name: XGrammarBackend(*facts)}
        if self._eos_token_ids:  # without which guidance cannot end a text
            try:
                backends[GuidanceBackend.name] = GuidanceBackend(*facts)
            except Exception as error:  # a kind of tokenizer that the library cannot read
                logger.warning("guidance cannot be used with this tokenizer: %s", error)
        return backends


class _DeepThreads(ThreadPoolExecutor):
    """Threads with stacks of STACK_BYTES."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        usual = threading.stack_size(STACK_BYTES)
        try:
            return super().submit(fn, *args, **kwargs)  # which starts threads as they are needed
        finally:
            threading.stack_size(usual)


def _compile(
    backends: Future[dict[str, Backend]], name: str, params: StructuredOutputsParams
) -> CompiledGrammar:
    """With the backend asked for; "auto": the first one that can. Raises GrammarError."""
    available = backends.result()
    if name != "auto":
        if name not in available:
            raise GrammarError(
                f"the backend {name!r} cannot be used with this model: it needs an end token and a "
                "fast tokenizer"
            )
        if (reason := available[name].rejects(params)) is not None:
            raise GrammarError(f"the backend {name!r} does not support {reason}")
        return available[name].compile(params)
    problems = []
    for backend in available.values():
        if (reason := backend.rejects(params)) is not None:
            problems.append(f"{backend.name} does not support {reason}")
            continue
        try:
            return backend.compile(params)
        except GrammarError as error:
            problems.append(f"{backend.name}: {error}")
    raise GrammarError("; ".join(problems))


def _has_failed(future: Future[Any]) -> bool:
    return future.done() and future.exception() is not None


class NoGrammars:
    """Of a scheduler that is given no requests with a form."""

    mask_words = 0

    def submit(self, params: StructuredOutputsParams) -> PendingGrammar:
        raise AssertionError(f"no compiler for {params.kind}")

    def wait(self, pending: Iterable[PendingGrammar], timeout_s: float) -> None:
        assert not list(pending)

    def stop(self) -> None:
        pass


NO_GRAMMARS: Final = NoGrammars()
