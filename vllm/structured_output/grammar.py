"""A grammar as the scheduler sees it: one sequence's state in one compiled form."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vllm.logger import init_logger

logger = init_logger(__name__)

MaskRow = NDArray[np.int32]  # one bit per token, least significant first; 1: allowed


class GrammarError(ValueError):
    """A form that cannot be compiled, or can never be met; the text is for the user."""


class BackendError(RuntimeError):
    """What compiles forms, or holds an output to one, does not work; the form may be right."""


def as_failure(error: BaseException) -> GrammarError | BackendError:
    """What ends the one request whose form made a library raise this, and not the engine."""
    if isinstance(error, GrammarError | BackendError):
        return error
    logger.error("the library of a form failed", exc_info=error)
    return BackendError(
        f"the library that compiles this form failed ({type(error).__name__}); the server's log "
        "says how"
    )


class Grammar(Protocol):
    """Host state of one sequence."""

    @property
    def finished(self) -> bool:
        """Nothing may follow any more, not even an end token."""
        ...

    @property
    def restricts(self) -> bool:
        """Whether the next token needs a mask."""
        ...

    def fill_mask(self, out: MaskRow) -> None:
        """Write which tokens may come next: out [ceil(V / 32)] int32."""
        ...

    def accept(self, token_id: int) -> bool:
        """Take over a drawn token; False if it may not come here, and then nothing has changed.

        Raises GrammarError if the form turns out to be more than its library can do, and
        BackendError if that fails.
        """
        ...


class CompiledGrammar(Protocol):
    """Shared by all sequences that ask for the same form. Thread-safe."""

    def start(self) -> Grammar: ...


class GuardedGrammar:
    """A grammar of a library that may raise anything, or know no way on.

    Only accept raises, GrammarError or BackendError.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._failure: GrammarError | BackendError | None = None

    @property
    def finished(self) -> bool:
        return self._grammar.finished

    @property
    def restricts(self) -> bool:
        return self._grammar.restricts

    def fill_mask(self, out: MaskRow) -> None:
        try:
            self._grammar.fill_mask(out)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust is not an Exception
            # The plan that is being built goes on; the row's token is refused when it comes.
            self._failure = as_failure(error)
        else:
            if not out.any():
                self._failure = GrammarError("the form leaves nothing that could come next")
        if self._failure is not None:
            out.fill(-1)

    def accept(self, token_id: int) -> bool:
        if self._failure is not None:
            raise self._failure
        try:
            return self._grammar.accept(token_id)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise as_failure(error) from error


def num_words(vocab_size: int) -> int:
    """Width of a mask row."""
    return -(-vocab_size // 32)
