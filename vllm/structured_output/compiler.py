"""Compiles forms in threads of its own, so that a step never waits for one."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import numpy as np

from vllm.config.structured import StructuredOutputsConfig
from vllm.logger import init_logger
from vllm.structured_output.cost import is_lark
from vllm.structured_output.grammar import (
    BackendError,
    CompiledGrammar,
    Grammar,
    GrammarError,
    GuardedGrammar,
    as_failure,
    num_words,
)
from vllm.structured_output.reasoning import AfterReasoning, ReasoningTokens, token_texts
from vllm.structured_output.threads import Job, Threads
from vllm.structured_params import ReasoningFirst, StructuredOutputsParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = init_logger(__name__)

NUM_THREADS: Final = 2
MAX_CACHED: Final = 256
# Of a processor, on one form in one backend. What else the machine does, what the backends cost to
# load, and other forms are not its fault.
BUDGET_S: Final = 8.0

Key = tuple[str | bool | None, ...]


class Backend(Protocol):
    name: str

    def rejects(self, params: StructuredOutputsParams) -> str | None: ...
    def compile(self, params: StructuredOutputsParams) -> CompiledGrammar: ...


@dataclass(frozen=True, slots=True)
class Backends:
    """Those that work here, in the order of preference, and why others do not."""

    usable: dict[str, Backend]
    failures: dict[str, GrammarError | BackendError]


class Pollable(Protocol):
    @property
    def future(self) -> Future[CompiledGrammar]: ...
    def poll(self) -> CompiledGrammar | None: ...


class Attempt:
    """Where a thread is with a form."""

    def __init__(self, threads: Threads, call: Callable[[Attempt], CompiledGrammar]) -> None:
        self.backend = ""  # the one that is asked
        self.problems: list[str] = []  # with those asked before
        self.job: Job[CompiledGrammar] = threads.submit(lambda: call(self))


class Compilation:
    """One form on its way through the backends, shared by all requests that ask for it.

    One that takes too long in a backend is tried in the next.
    """

    def __init__(
        self,
        threads: Threads,
        backends: Future[Backends],
        backend: str,
        params: StructuredOutputsParams,
    ) -> None:
        self._threads = threads
        self._backends = backends
        self._backend = backend
        self._params = params
        self._too_slow: list[str] = []
        self._refusal: str | None = None
        self._attempts = [Attempt(threads, self._compile)]

    @property
    def future(self) -> Future[CompiledGrammar]:
        """Of the last attempt."""
        return self._attempts[-1].job.future

    @property
    def may_be_repeated(self) -> bool:
        """It failed, and costs nothing any more."""
        futures = [attempt.job.future for attempt in self._attempts]
        return all(future.done() and future.exception() is not None for future in futures)

    def poll(self) -> CompiledGrammar | None:
        """What was compiled, once it is there. Raises whatever a backend raised."""
        self._threads.tend()
        for attempt in self._attempts:
            future = attempt.job.future
            if future.done() and future.exception() is None:
                return future.result()
        if self._refusal is not None:
            raise GrammarError(self._refusal)
        last = self._attempts[-1]
        if last.job.future.done():
            return last.job.future.result()
        if last.job.is_over_budget:
            self._next(last)
        return None

    def _next(self, last: Attempt) -> None:
        """Leave the backend that takes too long."""
        self._too_slow.append(last.backend)
        if set(self._candidates()) - set(self._too_slow):
            self._attempts.append(Attempt(self._threads, self._compile))
        else:
            self._refusal = "; ".join([*last.problems, self._slow(last.backend)])

    def _slow(self, name: str) -> str:
        return (
            f"{name} takes more than {self._threads.budget_s:g} seconds of a processor to compile "
            "it; simplify it: smaller bounds of repetition, fewer alternatives"
        )

    def _compile(self, attempt: Attempt) -> CompiledGrammar:
        """In a thread. Raises GrammarError, or BackendError if a backend that might is broken."""
        backends = self._backends.result()
        problems = attempt.problems
        is_broken = False
        for name in self._candidates():
            if name in self._too_slow:
                problems.append(self._slow(name))
                continue
            if (failure := backends.failures.get(name)) is not None:
                is_broken = is_broken or isinstance(failure, BackendError)
                problems.append(str(failure))
                continue
            if (reason := backends.usable[name].rejects(self._params)) is not None:
                problems.append(f"{name} does not support {reason}")
                continue
            attempt.backend = name
            attempt.job.meter.start()
            try:
                return backends.usable[name].compile(self._params)
            except GrammarError as error:
                problems.append(f"{name}: {error}")
        text = "; ".join(problems)
        raise BackendError(text) if is_broken else GrammarError(text)

    def _candidates(self) -> list[str]:
        may_change = not self._params.disable_fallback
        if self._params.kind == "grammar" and is_lark(self._params.spec) and may_change:
            return [LARK_READER]
        if self._backend != "auto":
            return [self._backend]
        return list(MAKERS) if may_change else list(MAKERS)[:1]


class PendingGrammar:
    """A form on its way to becoming a Grammar."""

    def __init__(
        self,
        compilation: Pollable,
        params: StructuredOutputsParams,
        mask_words: int,
        tokens: Future[ReasoningTokens] | None = None,
    ) -> None:
        self._compilation = compilation
        self._tokens = tokens
        self._params = params
        self._mask_words = mask_words

    @property
    def missing(self) -> Future[Any]:
        """What it waits for; done if it waits for nothing."""
        future = self._compilation.future
        return future if self._tokens is None or not future.done() else self._tokens

    def poll(self) -> Grammar | None:
        """The grammar, once it is there. Raises GrammarError or BackendError if there is none."""
        try:
            compiled = self._compilation.poll()
            if compiled is None or not (self._tokens is None or self._tokens.done()):
                return None
            return self._start(compiled)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust is not an Exception
            raise as_failure(error) from error

    def _start(self, compiled: CompiledGrammar) -> Grammar:
        grammar = compiled.start()
        first = np.zeros(self._mask_words, np.int32)
        grammar.fill_mask(first)
        if not first.any():
            raise GrammarError(f"{self._params.kind}: there is no text that meets it")
        if self._tokens is None or self._params.reasoning is None:
            return GuardedGrammar(grammar)
        return AfterReasoning(
            lambda: GuardedGrammar(compiled.start()),
            self._tokens.result(),
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
        budget_s: float = BUDGET_S,
    ) -> None:
        self.config = config
        self.vocab_size = vocab_size
        self._eos_token_ids = frozenset(t for t in eos_token_ids if 0 <= t < vocab_size)
        self._load_tokenizer = functools.cache(load_tokenizer)
        self.mask_words = num_words(vocab_size)
        self._cache: OrderedDict[Key, Compilation] = OrderedDict()
        self._threads = Threads(NUM_THREADS, "grammar", budget_s)
        self._backends: Future[Backends] | None = None
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
            params.disable_fallback,
        )
        compilation = self._cache.get(key)
        if compilation is None or compilation.may_be_repeated:
            compilation = self._cache[key] = self._start(backend, params)
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        tokens = None if params.reasoning is None else self._tokens_of(params.reasoning)
        return PendingGrammar(compilation, params, self.mask_words, tokens)

    def _tokens_of(self, reasoning: ReasoningFirst) -> Future[ReasoningTokens]:
        markers = reasoning.starts, reasoning.ends
        if self._markers != markers or self._tokens is None or _has_failed(self._tokens):
            self._markers = markers
            self._tokens = self._threads.submit(lambda: self._find_tokens(*markers)).future
        return self._tokens

    def _find_tokens(self, starts: Sequence[str], ends: Sequence[str]) -> ReasoningTokens:
        texts = token_texts(self._load_tokenizer(), self.vocab_size)
        return ReasoningTokens(texts, starts, ends, self._eos_token_ids)

    def _completed(self, params: StructuredOutputsParams) -> StructuredOutputsParams:
        """With the engine's settings where the request has none."""
        config = self.config
        return msgspec.structs.replace(
            params,
            disable_any_whitespace=params.disable_any_whitespace or config.disable_any_whitespace,
            disable_additional_properties=(
                params.disable_additional_properties or config.disable_additional_properties
            ),
            disable_fallback=params.disable_fallback or config.disable_fallback,
        )

    def wait(self, pending: Iterable[PendingGrammar], timeout_s: float) -> None:
        """Until the first of them is ready."""
        wait([one.missing for one in pending], timeout_s, FIRST_COMPLETED)

    def stop(self) -> None:
        self._threads.stop()

    def _start(self, backend: str, params: StructuredOutputsParams) -> Compilation:
        backends = self._backends
        if backends is None or _has_failed(backends):
            backends = self._backends = self._threads.submit(self._make_backends).future
        return Compilation(self._threads, backends, backend, params)

    def _make_backends(self) -> Backends:
        """In a thread. Raises BackendError if none works."""
        tokenizer = self._load_tokenizer()
        backends = Backends({}, {})
        for name, make in MAKERS.items():
            try:
                backends.usable[name] = make(tokenizer, self.vocab_size, self._eos_token_ids)
            except GrammarError as error:
                backends.failures[name] = error
            except Exception as error:  # a library, or a kind of tokenizer that it cannot read
                failure = f"{name} cannot be used with this model's tokenizer: {error}"
                logger.warning("%s", failure)
                backends.failures[name] = BackendError(failure)
        if not backends.usable:
            raise BackendError("; ".join(map(str, backends.failures.values())))
        return backends


def _xgrammar(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_ids: frozenset[int]
) -> Backend:
    # Imported here, in a thread, as guidance is: they take a second that most engines never need.
    from vllm.structured_output.xgrammar_backend import XGrammarBackend

    return XGrammarBackend(tokenizer, vocab_size, eos_token_ids)


def _guidance(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_ids: frozenset[int]
) -> Backend:
    from vllm.structured_output.guidance_backend import GuidanceBackend

    if not eos_token_ids:
        raise GrammarError("guidance needs an end token, which this model does not have")
    return GuidanceBackend(tokenizer, vocab_size, eos_token_ids)


# In the order in which "auto" asks them.
MAKERS: Final = {"xgrammar": _xgrammar, "guidance": _guidance}
LARK_READER: Final = "guidance"


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
