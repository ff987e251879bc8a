"""Streamed text is what the tokenizer decodes at once, and ends where its stop string begins."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vllm.errors import BadRequest
from vllm.sampling_params import SamplingParams
from vllm.transformers_utils.detokenizer import (
    ByteStream,
    SequenceText,
    TextDecoder,
    WindowStream,
    byte_symbols,
)

TINY_STORY = Path(__file__).parents[2] / "examples" / "models" / "tiny-story"
# Every character class that UTF-8 or a decoder could trip over, beside arbitrary ones.
TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" aé中😀\ufffd\n'▁"))
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TINY_STORY)


@pytest.fixture(scope="module")
def decoder(tokenizer: PreTrainedTokenizerBase) -> TextDecoder:
    return TextDecoder(tokenizer, len(tokenizer))


@pytest.fixture(scope="module")
def byte_fallback() -> TextDecoder:
    """As SentencePiece models decode: words with a mark for their space, and bytes for the rest."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    words += ["▁the", "▁a", "s", "a", "b", "▁b", "中", "▁é"]
    backend = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    return TextDecoder(wrapped, len(words))


def pieces(ids: Sequence[int], sizes: random.Random) -> list[list[int]]:
    rest, cut = list(ids), []
    while rest:
        size = sizes.randint(1, 3)
        cut.append(rest[:size])
        rest = rest[size:]
    return cut


def stream(
    decoder: TextDecoder, ids: Sequence[int], prompt: Sequence[int] = (), **params: Any
) -> list[str]:
    """The deltas of a sequence whose tokens arrive in small pieces."""
    own = SamplingParams(**params)
    text = SequenceText(decoder.stream(own, list(prompt)), own)
    deltas = []
    for piece in pieces(ids, random.Random(len(ids))):
        taken = text.push(piece)
        if text.matched is not None:
            assert taken <= len(piece)
            break
        deltas.append(text.take(is_last=False))
    text.finish()
    deltas.append(text.take(is_last=True))
    assert "".join(deltas) == text.visible(is_last=True)
    return deltas


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
@example(text="🏳️‍🌈 ناقة 中文 e\u0301")
def test_any_text_streams_as_it_is(
    tokenizer: PreTrainedTokenizerBase, decoder: TextDecoder, text: str
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    deltas = stream(decoder, ids)
    assert "".join(deltas) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert all("\ufffd" not in delta for delta in deltas)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_any_tokens_stream_as_the_tokenizer_decodes_them(
    tokenizer: PreTrainedTokenizerBase, decoder: TextDecoder, data: st.DataObject, skip: bool
) -> None:
    byte_tokens = tokenizer.convert_tokens_to_ids(byte_symbols())
    token = st.integers(0, len(tokenizer) - 1) | st.sampled_from(byte_tokens)
    ids = data.draw(st.lists(token, max_size=40))
    deltas = stream(decoder, ids, skip_special_tokens=skip)
    assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_byte_level_tokenizers_take_the_table(decoder: TextDecoder) -> None:
    assert isinstance(decoder.stream(SamplingParams(), []), ByteStream)


def test_ids_beyond_the_tokenizer_have_no_text(tokenizer: PreTrainedTokenizerBase) -> None:
    padded = TextDecoder(tokenizer, len(tokenizer) + 64)
    assert stream(padded, [len(tokenizer) + 5])[-1] == ""
    assert padded.token_text(len(tokenizer) + 63) == ""


def test_added_tokens_outside_the_byte_alphabet_decode_as_the_tokenizer_does() -> None:
    backend = Tokenizer(models.BPE({s: i for i, s in enumerate(byte_symbols())}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_tokens(["<tool call>", "é", "中文", "🎉"])
    decoder = TextDecoder(tokenizer, len(tokenizer))
    ids = [65, *sorted(tokenizer.added_tokens_decoder), 66]
    assert "".join(stream(decoder, ids)) == tokenizer.decode(ids)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.sampled_from(" thesab中é😀▁\n"), max_size=30),
    begin=st.sampled_from(["", "a", "the"]),
)
def test_byte_fallback_text_streams_after_its_prompt(
    byte_fallback: TextDecoder, text: str, begin: str
) -> None:
    tokenizer = byte_fallback.tokenizer
    prompt, ids = (tokenizer.encode(t, add_special_tokens=False) for t in (begin, text))
    whole, before = tokenizer.decode([*prompt, *ids]), tokenizer.decode(prompt)
    deltas = stream(byte_fallback, ids, prompt)
    assert "".join(deltas) == whole.removeprefix(before)
    assert all("\ufffd" not in delta for delta in deltas)


def test_a_continuation_keeps_the_space_of_its_first_word(byte_fallback: TextDecoder) -> None:
    the, a = byte_fallback.tokenizer.convert_tokens_to_ids(["▁the", "▁a"])
    assert stream(byte_fallback, [a], prompt=[the]) == [" a", ""]
    assert byte_fallback.token_text(a) == " a"


def test_bytes_that_stay_invalid_do_not_hold_a_stream_back(byte_fallback: TextDecoder) -> None:
    bad = byte_fallback.tokenizer.convert_tokens_to_ids("<0xFF>")
    assert isinstance(byte_fallback.stream(SamplingParams(), []), WindowStream)
    deltas = stream(byte_fallback, [bad] * 40)
    assert "".join(deltas) == "\ufffd" * 40
    assert max(map(len, deltas)) <= 10


def reference_cut(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """What reading character by character finds."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@settings(max_examples=400, deadline=None)
@given(
    text=st.text(st.sampled_from("abc é"), max_size=40),
    stops=st.lists(
        st.text(st.sampled_from("abc é"), min_size=1, max_size=5), min_size=1, max_size=3
    ),
    include=st.booleans(),
)
def test_a_stop_string_ends_the_text_and_no_piece_of_it_is_shown(
    tokenizer: PreTrainedTokenizerBase,
    decoder: TextDecoder,
    text: str,
    stops: list[str],
    include: bool,
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    expected, stop = reference_cut(tokenizer.decode(ids), stops, include)
    params = SamplingParams(stop=stops, include_stop_str_in_output=include)
    sequence = SequenceText(decoder.stream(params, []), params)
    shown = ""
    for token_id in ids:
        sequence.push([token_id])
        shown += sequence.take(is_last=False) if sequence.matched is None else ""
        assert expected.startswith(shown)
        if sequence.matched is not None:
            break
    sequence.finish()
    assert shown + sequence.take(is_last=True) == expected
    assert sequence.matched == stop


def test_a_stop_string_within_min_tokens_is_text(decoder: TextDecoder) -> None:
    ids = decoder.tokenizer.encode("x END y END z", add_special_tokens=False)
    first_end = next(i for i in range(len(ids)) if "END" in decoder.tokenizer.decode(ids[: i + 1]))
    params = SamplingParams(stop="END", min_tokens=first_end + 2, max_tokens=100)
    text = SequenceText(decoder.stream(params, []), params)
    taken = text.push(ids)
    assert text.visible(is_last=True) == "x END y "
    assert first_end + 2 <= taken < len(ids)


def test_half_a_stop_string_is_shown_when_the_sequence_ends(decoder: TextDecoder) -> None:
    ids = decoder.tokenizer.encode("one two", add_special_tokens=False)
    assert "".join(stream(decoder, ids, stop=["two three"])) == "one two"


def test_without_detokenize_there_is_no_text(decoder: TextDecoder) -> None:
    assert stream(decoder, [10, 11, 12], detokenize=False)[-1] == ""


def test_stop_strings_are_limited_in_number_and_length() -> None:
    # Held back was once what began any of them: a megabyte of memory for each of its characters.
    assert SamplingParams(stop=["a" * 4096] * 1024).stop_strings
    for stop in (["a" * 4097], [f"stop {i}" for i in range(1025)]):
        with pytest.raises(BadRequest, match=r"^stop has .* at most"):
            SamplingParams(stop=stop)


def test_the_beginning_of_a_long_stop_string_is_held_back(decoder: TextDecoder) -> None:
    ids = decoder.tokenizer.encode("x" + "ab" * 50, add_special_tokens=False)
    assert "".join(stream(decoder, ids, stop=["ab" * 2000 + "c", "b"])) == "xa"
