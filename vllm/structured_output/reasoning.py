"""Reasoning before a form: what opens and ends it is told by the text of the drawn tokens."""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vllm.structured_output.grammar import Grammar, MaskRow
from vllm.structured_params import ReasoningFirst

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenIds = NDArray[np.int64]


def token_texts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[bytes]:
    """The bytes of every token of the model; none of those that the tokenizer does not know."""
    import xgrammar  # takes a second that most engines never need

    # Any stop token will do: only texts are asked for, and without one the library warns.
    info = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=vocab_size, stop_token_ids=[0]
    )
    texts: list[bytes] = info.decoded_vocab[:vocab_size]
    return texts


class ReasoningTokens:
    """The tokens of a vocabulary that matter to markers of reasoning. Immutable, hence shared."""

    def __init__(
        self,
        vocabulary: Sequence[bytes],
        starts: Sequence[str],
        ends: Sequence[str],
        eos_token_ids: Iterable[int],
    ) -> None:
        self.texts = vocabulary
        self._eos = np.array(sorted(eos_token_ids), np.int64)
        self.starts = tuple(sorted((text.encode() for text in starts), key=len, reverse=True))
        self.ends = tuple(text.encode() for text in ends)
        # By a marker, and how many of its bytes the text has: tokens that go on with it.
        self._opening = _by_offset(vocabulary, self.starts, _goes_on)
        # Likewise: tokens that end reasoning and go on with something else.
        self._overshooting = _by_offset(vocabulary, self.ends, _overshoots)
        for end in self.ends:
            within = [i for i, text in enumerate(vocabulary) if text.partition(end)[2]]
            self._overshooting[end, 0] = np.array(within, np.int64)

    def opening(self, begun: bytes, is_spelled: bool) -> TokenIds:
        """Tokens that may open reasoning after `begun`; at once or not at all, unless spelled."""
        ids = [
            self._opening[marker, len(begun)]
            for marker in self.starts
            if marker.startswith(begun) and (marker, len(begun)) in self._opening
        ]
        found = np.concatenate(ids) if ids else np.empty(0, np.int64)
        if not is_spelled:
            whole = [i for i in found.tolist() if self.opened(begun + self.texts[i])]
            found = np.array(whole, np.int64)
        return found

    def opened(self, text: bytes) -> bytes | None:
        """The marker that a text begins with."""
        return next((marker for marker in self.starts if text.startswith(marker)), None)

    def forbidden(self, tail: bytes) -> TokenIds:
        """Tokens after `tail` in whose middle reasoning would end, and those that end it all."""
        ids = [
            found
            for (marker, count), found in self._overshooting.items()
            if len(found) and tail.endswith(marker[:count])
        ]
        return np.concatenate([self._eos, *ids])


class _Stage(enum.Enum):
    UNDECIDED = enum.auto()  # the text so far is the beginning of a marker, or empty
    REASONING = enum.auto()
    FORM = enum.auto()


class AfterReasoning:
    """A grammar of what follows reasoning, which is free, but for the end of the output: the form
    is still to come.

    Where reasoning is not open, the first token opens it or begins the form: nothing else may come.
    A token that would end reasoning and go on may not come either: its rest would be no part of the
    form. There always is another, which ends where the marker does.
    """

    def __init__(
        self, start: Callable[[], Grammar], tokens: ReasoningTokens, reasoning: ReasoningFirst
    ) -> None:
        self._start = start
        self._grammar = start()
        self._tokens = tokens
        self._is_spelled = reasoning.is_spelled
        self._stage = _Stage.REASONING if reasoning.is_open else _Stage.UNDECIDED
        # Undecided: all of it; in reasoning: as much as may begin a marker.
        self._text = reasoning.begun.encode()
        self._is_form = True  # while undecided: whether the form may have begun, too
        self._forbidden = self._find_forbidden()

    @property
    def finished(self) -> bool:
        return self._stage is _Stage.FORM and self._grammar.finished

    @property
    def restricts(self) -> bool:
        if self._stage is _Stage.REASONING:
            return len(self._forbidden) > 0
        return self._stage is _Stage.UNDECIDED or self._grammar.restricts

    def fill_mask(self, out: MaskRow) -> None:
        if self._stage is _Stage.REASONING:
            out.fill(-1)
            np.bitwise_and.at(out.view(np.uint32), *_inverted(self._forbidden))
            return
        if self._stage is _Stage.FORM or self._is_form:
            self._grammar.fill_mask(out)
        else:
            out.fill(0)
        if self._stage is _Stage.UNDECIDED and (self._is_spelled or not self._text):
            opening = self._tokens.opening(self._text, self._is_spelled)
            np.bitwise_or.at(out.view(np.uint32), *_bits(opening))

    def accept(self, token_id: int) -> bool:
        if self._stage is _Stage.FORM:
            return self._grammar.accept(token_id)
        text = self._text + self._tokens.texts[token_id]
        if self._stage is _Stage.REASONING:
            self._think(text)
            return True
        if (marker := self._tokens.opened(text)) is not None:
            self._stage = _Stage.REASONING
            self._grammar = self._start()  # it may have taken over a part of the marker
            self._think(text[len(marker) :])
            return True
        is_form = self._is_form and self._grammar.accept(token_id)
        may_open = any(marker.startswith(text) for marker in self._tokens.starts)
        if may_open and (is_form or self._is_spelled):
            self._text, self._is_form = text, is_form
            return True
        self._stage = _Stage.FORM
        return is_form

    def _think(self, text: bytes) -> None:
        if any(end in text for end in self._tokens.ends):
            self._stage = _Stage.FORM
            return
        longest = max(map(len, self._tokens.ends))
        self._text = text[-longest:]
        self._forbidden = self._find_forbidden()

    def _find_forbidden(self) -> TokenIds:
        if self._stage is not _Stage.REASONING:
            return np.empty(0, np.int64)
        return self._tokens.forbidden(self._text)


def _by_offset(
    vocabulary: Iterable[bytes], markers: Sequence[bytes], matches: Callable[[bytes, bytes], bool]
) -> dict[tuple[bytes, int], TokenIds]:
    """Tokens whose text matches what is left of a marker after as many bytes."""
    rests = defaultdict(list)  # by their first byte, which tells most tokens apart
    for marker in markers:
        for offset in range(len(marker)):
            rests[marker[offset : offset + 1]].append((marker, offset, marker[offset:]))
    found: dict[tuple[bytes, int], list[int]] = defaultdict(list)
    for token_id, text in enumerate(vocabulary):
        for marker, offset, rest in rests.get(text[:1], ()):
            if matches(text, rest):
                found[marker, offset].append(token_id)
    return {key: np.array(ids, np.int64) for key, ids in found.items()}


def _goes_on(text: bytes, rest: bytes) -> bool:
    return rest.startswith(text) or text.startswith(rest)


def _overshoots(text: bytes, rest: bytes) -> bool:
    return len(text) > len(rest) and text.startswith(rest)


def _bits(ids: TokenIds) -> tuple[TokenIds, NDArray[np.uint32]]:
    """Words of a mask, and the bit of each token in its word."""
    return ids >> 5, np.left_shift(np.uint32(1), (ids & 31).astype(np.uint32))


def _inverted(ids: TokenIds) -> tuple[TokenIds, NDArray[np.uint32]]:
    words, bits = _bits(ids)
    return words, ~bits
