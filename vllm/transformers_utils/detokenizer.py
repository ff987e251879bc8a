"""Tokens to text while they arrive: never half a character, and stop strings found on the way.

The text of a sequence is what its tokenizer decodes from all its tokens, whatever the pieces they
arrived in. A byte that is no valid UTF-8 shows as U+FFFD once it is certain that it stays invalid.
"""

from __future__ import annotations

import codecs
import functools
import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from tokenizers import decoders

from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.transformers_utils.plain_tokenizer import PlainTokenizer
from vllm.transformers_utils.tokenizer import backend_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = init_logger(__name__)

REPLACEMENT: Final = "\ufffd"
# Prompt tokens that the first output tokens are decoded after: a decoder may strip the space of a
# token that begins a text, and an output continues one.
NUM_CONTEXT_TOKENS: Final = 4
# A character is at most four bytes, so what is still undecodable after this many tokens stays so.
MAX_HELD_TOKENS: Final = 8
# How tokenizers that fall back to bytes write a byte.
BYTE_TOKEN: Final = re.compile("<0x([0-9A-F]{2})>")
# Tokens the byte table must agree on with the tokenizer before it is trusted.
NUM_PROBES: Final = 512


class TextStream(Protocol):
    """Text of one sequence."""

    def push(self, token_ids: Sequence[int]) -> str:
        """What is certain to follow the text so far."""
        ...

    def finish(self) -> str:
        """What was held back; the sequence has ended."""
        ...


class NoText:
    """The stream of a sequence that nobody wants the text of."""

    def push(self, token_ids: Sequence[int]) -> str:
        return ""

    def finish(self) -> str:
        return ""


class ByteStream:
    """For tokenizers whose tokens are bytes (byte-level BPE): a table and a UTF-8 decoder."""

    __slots__ = ("_held", "_table")

    def __init__(self, table: list[bytes]) -> None:
        self._table = table
        self._held = b""  # the begin of a character

    def push(self, token_ids: Sequence[int]) -> str:
        table = self._table
        data = self._held + b"".join([table[token_id] for token_id in token_ids])
        text, num_used = codecs.utf_8_decode(data, "replace", False)
        self._held = data[num_used:]
        return text

    def finish(self) -> str:
        text, _ = codecs.utf_8_decode(self._held, "replace", True)
        self._held = b""
        return text


class WindowStream:
    """For every other tokenizer: decodes a few tokens before the new ones with them.

    Characters next to invalid bytes keep their value, where decoding a whole byte-fallback run at
    once would lose them.
    """

    __slots__ = ("_decode", "_num_read", "_previous", "_read_text", "_special", "_tight", "_window")

    def __init__(self, decoder: TextDecoder, params: SamplingParams, prompt: list[int]) -> None:
        self._decode = decoder.decode_skipping if params.skip_special_tokens else decoder.decode
        self._special = decoder.special_ids
        self._tight = not params.skip_special_tokens and not params.spaces_between_special_tokens
        context = prompt[-NUM_CONTEXT_TOKENS:]
        self._read_text = self._decode(context)
        if self._read_text.endswith(REPLACEMENT):
            context, self._read_text = [], ""
        self._window = context  # tokens whose text is out, then those whose text is held back
        self._num_read = len(context)
        self._previous = -1

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([self._push(token_id) for token_id in token_ids])

    def finish(self) -> str:
        return self._fresh(self._decode(self._window))

    def _push(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        num_held = len(self._window) - self._num_read
        if text.endswith(REPLACEMENT) and num_held < MAX_HELD_TOKENS:
            return ""
        fresh = self._fresh(text)
        if not fresh and num_held < MAX_HELD_TOKENS:
            return ""
        if fresh:
            self._window = self._window[self._num_read :]
        else:
            del self._window[self._num_read :]
        self._num_read = len(self._window)
        self._read_text = self._decode(self._window)
        if self._tight and {token_id, self._previous} <= self._special:
            fresh = fresh.removeprefix(" ")
        self._previous = token_id
        return fresh

    def _fresh(self, text: str) -> str:
        if text.startswith(self._read_text):
            return text[len(self._read_text) :]
        return self._decode(self._window[self._num_read :])


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that skip_special_tokens leaves out of the text."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not isinstance(tokenizer, PlainTokenizer):  # whose special tokens have all been added
        special.update(tokenizer.all_special_ids)
    return frozenset(special)


class TextDecoder:
    """A tokenizer's way from tokens to text. Shared by all sequences."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        """`vocab_size` is the model's, which may be larger than the tokenizer's."""
        self.tokenizer = tokenizer
        self._vocab_size = vocab_size
        self.special_ids = special_ids(tokenizer)
        self._bytes: list[bytes] | None = None
        backend = backend_of(tokenizer)
        if backend is not None and isinstance(backend.decoder, decoders.ByteLevel):
            self._bytes = self._trusted(byte_table(tokenizer, vocab_size))
        if self._bytes is not None:
            self._text_bytes = list(self._bytes)
            for token_id in self.special_ids:
                self._text_bytes[token_id] = b""
        self.token_text = functools.lru_cache(maxsize=None)(self._token_text)

    def stream(self, params: SamplingParams, prompt: list[int]) -> TextStream:
        if not params.detokenize:
            return NoText()
        if self._bytes is None:
            return WindowStream(self, params, prompt)
        return ByteStream(self._text_bytes if params.skip_special_tokens else self._bytes)

    def decode(self, token_ids: list[int]) -> str:
        return self._decode(token_ids, False)

    def decode_skipping(self, token_ids: list[int]) -> str:
        return self._decode(token_ids, True)

    def _decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        text = self.tokenizer.decode(
            token_ids,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        assert isinstance(text, str), type(text)
        return text

    def _token_text(self, token_id: int) -> str:
        """Text of one token by itself, with the space it may begin with."""
        if self._bytes is not None:
            return self._bytes[token_id].decode("utf-8", "replace")
        # As the second of two: the first one of a text may lose its space.
        once = self.decode([token_id])
        return self.decode([token_id, token_id])[len(once) :]

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text, of which it may be half a character."""
        if self._bytes is not None:
            return self._bytes[token_id]
        text = self.token_text(token_id)
        if REPLACEMENT in text and (data := self._undecodable(token_id)):
            return data
        return text.encode("utf-8", "replace")

    def _undecodable(self, token_id: int) -> bytes:
        """The bytes of a token that is no text by itself; none if the tokenizer does not say."""
        if self._raw_bytes is not None:
            return self._raw_bytes[token_id]
        token = self.tokenizer.convert_ids_to_tokens(token_id)
        if isinstance(token, bytes):  # as tokenizers of the kind of tiktoken have them
            return token
        found = BYTE_TOKEN.fullmatch(token or "")
        return b"" if found is None else bytes([int(found[1], 16)])

    @functools.cached_property
    def _raw_bytes(self) -> list[bytes] | None:
        """The byte table of a tokenizer that has one and does more than to join its bytes."""
        backend = backend_of(self.tokenizer)
        if backend is None or backend.decoder is None:
            return None
        if b'"ByteLevel"' not in backend.decoder.__getstate__():
            return None
        return byte_table(self.tokenizer, self._vocab_size)

    def _trusted(self, table: list[bytes]) -> list[bytes] | None:
        """`table` if it agrees with the tokenizer, which may decode in a way of its own."""
        num_tokens = len(self.tokenizer)
        step = max(1, num_tokens // NUM_PROBES)
        probe = [*range(0, num_tokens, step), *sorted(self.tokenizer.added_tokens_decoder)]
        expected = self.decode(probe)
        if b"".join([table[i] for i in probe]).decode("utf-8", "replace") == expected:
            return table
        logger.info("The tokenizer decodes bytes its own way; streaming decodes by window")
        return None


@functools.lru_cache(maxsize=4)
def text_decoder(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> TextDecoder:
    """One for all who decode with the same object."""
    return TextDecoder(tokenizer, vocab_size)


def byte_table(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[bytes]:
    """The bytes of every token of a byte-level tokenizer, by id; b"" where there is no token."""
    vocabulary = tokenizer.get_vocab()
    table = [b""] * max(vocab_size, 1 + max(vocabulary.values()))
    # All tokens at once: one by one they would take a third of a second.
    symbols = byte_symbols()
    byte_of = np.full(2 + max(map(ord, symbols)), -1, np.int16)
    byte_of[[ord(symbol) for symbol in symbols]] = range(256)
    codes = np.frombuffer("".join(vocabulary).encode("utf-32-le"), np.uint32)
    found = byte_of[np.minimum(codes, len(byte_of) - 1)]  # the last one stands for no byte
    data = found.astype(np.uint8).tobytes()
    ends = np.cumsum(np.fromiter(map(len, vocabulary), np.int64, len(vocabulary)))
    num_others = np.concatenate(([0], np.cumsum(found < 0)))[ends]
    is_other = np.diff(num_others, prepend=0) > 0
    begin = 0
    rows = zip(vocabulary.items(), ends.tolist(), is_other.tolist(), strict=True)
    for (token, token_id), end, is_text in rows:
        table[token_id] = token.encode() if is_text else data[begin:end]
        begin = end
    return table


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 stands for itself; the others take the code points from 256 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


class SequenceText:
    """The text of one sequence up to its first stop string, and how much of it may be shown."""

    __slots__ = (
        "_include_stop",
        "_last_characters",
        "_min_tokens",
        "_num_shown",
        "_num_tokens",
        "_pending",
        "_sorted_stops",
        "_stops",
        "_stream",
        "_text",
        "matched",
    )

    def __init__(self, stream: TextStream, params: SamplingParams) -> None:
        self._stream = stream
        self._stops = params.stop_strings
        self._include_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self._num_shown = 0
        # What may not be shown yet: a piece of a stop string that could still be completed.
        self._sorted_stops = [] if self._include_stop else sorted(self._stops)
        self._last_characters = frozenset().union(*(stop[:-1] for stop in self._sorted_stops))
        self._text = ""
        self._pending: list[int] = []  # tokens to decode when somebody wants their text
        self.matched: str | None = None  # the stop string that ended the sequence

    def push(self, token_ids: Sequence[int]) -> int:
        """Take tokens over, up to the one that completes a stop string; returns how many."""
        if not self._stops:
            self._pending += token_ids
            return len(token_ids)
        for index, token_id in enumerate(token_ids):
            self._num_tokens += 1
            if self._extend(self._stream.push((token_id,))):
                return index + 1
        return len(token_ids)

    def finish(self) -> None:
        """No tokens follow: what was held back as half a character is text now."""
        self._decode_pending()
        if self.matched is None:
            self._extend(self._stream.finish())

    def take(self, is_last: bool) -> str:
        """Text to show that was not taken before."""
        if self._stops:
            end = self._end(is_last)
        else:
            self._decode_pending()
            end = len(self._text)
        text = self._text[self._num_shown : end]
        self._num_shown = max(end, self._num_shown)
        return text

    def visible(self, is_last: bool) -> str:
        """All text to show."""
        end = self._end(is_last)
        return self._text[:end]

    def _end(self, is_last: bool) -> int:
        self._decode_pending()
        text = self._text
        if is_last or not text or text[-1] not in self._last_characters:
            return len(text)
        longest = max(map(len, self._sorted_stops)) - 1
        for begin in range(max(0, len(text) - longest), len(text)):
            # Of the strings that sort behind it, those it begins come first.
            end = text[begin:]
            place = bisect_right(self._sorted_stops, end)
            if place < len(self._sorted_stops) and self._sorted_stops[place].startswith(end):
                return begin
        return len(text)

    def _decode_pending(self) -> None:
        if self._pending:
            self._text += self._stream.push(self._pending)
            self._pending = []

    def _extend(self, fresh: str) -> bool:
        """Append text; True if it completes a stop string, behind which the text is cut.

        Of several, the one that ends first counts, and of those the one that begins first: what
        reading character by character would find, however the text is cut into tokens.
        """
        num_old = len(self._text)
        self._text += fresh
        if not fresh or self._num_tokens < self._min_tokens:
            return False
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            begin = self._text.find(stop, max(0, num_old - len(stop) + 1))
            if begin >= 0 and (best is None or (begin + len(stop), begin) < best[:2]):
                best = (begin + len(stop), begin, stop)
        if best is None:
            return False
        end, begin, self.matched = best
        self._text = self._text[: end if self._include_stop else begin]
        return True
