"""Compiles forms in threads of its own, so that a step never waits for one."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeVar

import msgspec
import numpy as np

from vllm.config.structured import StructuredOutputsConfig
from vllm.logger import init_logger
from vllm.structured_output.grammar import (
    CompiledGrammar,
    DelayedGrammar,
    Grammar,
    GrammarError,
    GuardedGrammar,
    as_refusal,
    num_words,
)
from vllm.structured_params import StructuredOutputsParams

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
    ) -> None:
        self.future = future
        self._params = params
        self._mask_words = mask_words
        self._clock = clock
        self._deadline_s = clock() + DEADLINE_S

    def poll(self) -> Grammar | None:
        """The grammar, once it is there. Raises GrammarError if there will be none."""
        if self.future.done():
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
        guarded = GuardedGrammar(grammar)
        if self._params.start_after:
            return DelayedGrammar(guarded, self._params.start_after)
        return guarded


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
        self._load_tokenizer = load_tokenizer
        self._clock = clock
        self.mask_words = num_words(vocab_size)
        self._cache: OrderedDict[Key, Future[CompiledGrammar]] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None
        self._backends: Future[dict[str, Backend]] | None = None

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
        if future is None or (future.done() and future.exception() is not None):
            future = self._cache[key] = self._start(backend, params)
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return PendingGrammar(future, params, self.mask_words, self._clock)

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
        wait([one.future for one in pending], timeout_s, FIRST_COMPLETED)

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
