"""Bytes and places of tokens: what joins to the text, and where in it each token is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.entrypoints.openai.sse import stream
from vllm.entrypoints.openai.logprobs import CompletionLogprobsBuilder, TokenNamer
from vllm.entrypoints.openai.serving.echo import echoed_prompt
from vllm.outputs import Logprob
from vllm.sampling_params import SamplingParams
from vllm.transformers_utils.detokenizer import (
    TextDecoder,
    WindowStream,
    byte_symbols,
    text_decoder,
)
from vllm.transformers_utils.tokenizer import backend_of, load_tokenizer

TINY_STORY = Path(__file__).parents[3] / "examples" / "models" / "tiny-story"
TEXT = "Né 😀!"
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
HELLO = [{"role": "user", "content": "Hi"}]


def finished(backend: Tokenizer) -> TextDecoder:
    """With tokens around every text."""
    backend.add_special_tokens(["<s>", "</s>"])
    begin, end = (backend.token_to_id(token) for token in ("<s>", "</s>"))
    ours = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", begin), ("</s>", end)])
    before = backend.post_processor
    backend.post_processor = ours if before is None else processors.Sequence([before, ours])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    return TextDecoder(wrapped, len(wrapped))


def byte_level(trims: bool) -> TextDecoder:
    symbols = {symbol: i for i, symbol in enumerate(byte_symbols())}
    word = {"Ġa": 256, "Ġab": 257, "Ġb": 258}
    backend = Tokenizer(models.BPE({**symbols, **word}, [("Ġ", "a"), ("Ġa", "b"), ("Ġ", "b")]))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=trims)
    backend.decoder = decoders.ByteLevel()
    return finished(backend)


def byte_fallback() -> TextDecoder:
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"Nab!<>/s"]
    words += ["▁a", "▁N", "ab"]
    merges = [("▁", "a"), ("▁", "N"), ("a", "b")]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    strip = decoders.Strip(" ", 1, 0)
    replace = decoders.Replace("▁", " ")
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    return finished(backend)


def bytes_in_a_sequence() -> TextDecoder:
    """A byte-level tokenizer whose decoder does more than to join bytes."""
    decoder = byte_level(trims=False)
    backend = backend_of(decoder.tokenizer)
    assert backend is not None
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\0", "\0")])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    found = TextDecoder(wrapped, len(wrapped))
    assert isinstance(found.stream(SamplingParams(), []), WindowStream)
    return found


@pytest.fixture(
    scope="module", params=["story", "bytes", "trimmed bytes", "bytes in a sequence", "fallback"]
)
def decoder(request: pytest.FixtureRequest) -> TextDecoder:
    if request.param == "story":
        tokenizer = load_tokenizer(TINY_STORY)
        return TextDecoder(tokenizer, len(tokenizer))
    if "sequence" in request.param:
        return bytes_in_a_sequence()
    return byte_fallback() if request.param == "fallback" else byte_level("trim" in request.param)


def begins(text: str, pieces: list[bytes]) -> list[int]:
    """Of the character that holds the first byte of each piece."""
    at = [i for i, character in enumerate(text) for _ in character.encode()] + [len(text)]
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    return [at[start] for start in starts[:-1]]


@pytest.mark.parametrize("text", [TEXT, "a", "ab ab\n\n b  a", "😀😀", "é中 "])
def test_bytes_of_tokens_join_to_the_text_and_say_where_they_begin(
    decoder: TextDecoder, text: str
) -> None:
    encode, has_prefix = decoder.tokenizer.encode, False
    ids = encode(text, add_special_tokens=False)
    pieces = [decoder.token_bytes(token_id) for token_id in ids]
    if pieces[0].startswith(b" ") and not text.startswith(" "):
        has_prefix, pieces[0] = True, pieces[0][1:]
    assert b"".join(pieces) == text.encode()

    expected = begins(text, pieces)
    whole = encode(text)
    num_added = len(whole) - len(ids)
    assert num_added == 1
    echoed = echoed_prompt(decoder, whole, text)
    assert (echoed.text, echoed.offsets) == (text, [0, *expected])

    spelt = echoed_prompt(decoder, whole, None)
    assert spelt.text == decoder.decode(whole)
    num_more = len(spelt.text) - len(text)
    assert num_more >= 3
    if not has_prefix:
        assert spelt.offsets == [0, *(at + num_more for at in expected)]


def test_special_tokens_that_the_text_spells_are_told_from_those_that_were_added() -> None:
    for decoder in (byte_level(trims=True), byte_fallback()):
        for text, offsets in (("<s>a</s>", [0, 0, 3, 4]), ("<s>", [0, 0]), ("", [0])):
            whole = decoder.tokenizer.encode(text)
            assert echoed_prompt(decoder, whole, text).offsets == offsets


@pytest.mark.parametrize("trims", [True, False])
def test_of_a_text_that_is_changed_first_the_tokenizer_knows_the_places(trims: bool) -> None:
    decoder = byte_level(trims)
    text = "e\u0301 ab e\u0301"  # two é of two characters each, which become one

    echoed = echoed_prompt(decoder, decoder.tokenizer.encode(text), text)

    tokens = decoder.tokenizer.convert_ids_to_tokens(decoder.tokenizer.encode(text))
    assert tokens == ["<s>", "Ã", "©", "Ġab", "Ġ", "Ã", "©"]
    assert echoed.offsets == [0, 0, 0, 2, 5, 6, 6]


def test_of_tokens_that_read_the_same_the_best_value_is_kept() -> None:
    decoder = byte_fallback()
    first, second, third = (
        decoder.tokenizer.convert_tokens_to_ids(f"<0x{byte}>") for byte in ("F0", "9F", "98")
    )
    a = decoder.tokenizer.convert_tokens_to_ids("a")
    drawn = {
        third: Logprob(-3.0, 4, decoder.token_text(third)),
        a: Logprob(-0.5, 1, "a"),
        first: Logprob(-1.0, 2, decoder.token_text(first)),
        second: Logprob(-2.0, 3, decoder.token_text(second)),
    }

    def top(num_alternatives: int) -> list[tuple[str, float]]:
        text = decoder.stream(SamplingParams(), [])
        builder = CompletionLogprobsBuilder(TokenNamer(decoder, False), num_alternatives, text)
        made = builder.push([third], [drawn])
        assert made.token_logprobs == [-3.0]
        (entry,) = made.top_logprobs
        assert entry is not None
        return list(entry.items())

    assert top(20) == [("\ufffd", -1.0), ("a", -0.5)]
    assert top(1) == [("\ufffd", -3.0), ("a", -0.5)]
    assert top(0) == [("\ufffd", -3.0)]


@pytest.mark.asyncio
@pytest.mark.parametrize("as_ids", [False, True])
async def test_bytes_over_http_are_the_tokens_own(client, engine, as_ids):
    engine.text = TEXT
    body = {
        "messages": HELLO,
        "logprobs": True,
        "top_logprobs": 1,
        "return_tokens_as_token_ids": as_ids,
    }
    answer = (await client.post(PATHS["chat"], json=body)).json()
    streamed = await stream(client, PATHS["chat"], body)
    content = answer["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == TEXT
    assert [entry["top_logprobs"][0]["bytes"] for entry in content] == [
        entry["bytes"] for entry in content
    ]
    assert content == [
        entry
        for piece in streamed
        for entry in (piece["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    include = ["message.output_text.logprobs"]
    answer = (await client.post("/v1/responses", json={"input": "Hi", "include": include})).json()
    (part,) = answer["output"][0]["content"]
    assert bytes(byte for entry in part["logprobs"] for byte in entry["bytes"]).decode() == TEXT


@pytest.mark.asyncio
async def test_offsets_over_http_are_places_in_the_text(client, engine):
    engine.text = TEXT
    expected = [0, 1, 1, 2, 3, 3, 3, 3, 4]
    for given, shown in (("", 0), ("é😀", 2)):
        if not given:
            body = {"prompt": "x", "logprobs": 0}
        else:
            body = {"prompt": given, "logprobs": 0, "echo": True, "max_tokens": 99}
        prompt = [0, 0, 1, 1, 1, 1] if given else []
        whole = (await client.post(PATHS["completions"], json=body)).json()["choices"][0]
        assert whole["text"] == given + TEXT
        offsets = [*prompt, *(shown + at for at in expected)]
        assert whole["logprobs"]["text_offset"] == offsets
        pieces = [piece["choices"][0] for piece in await stream(client, PATHS["completions"], body)]
        assert [at for piece in pieces for at in piece["logprobs"]["text_offset"]] == offsets


@pytest.mark.asyncio
async def test_the_token_itself_comes_first_of_the_best(client):
    body = {"prompt": "Hi", "echo": True, "max_tokens": 1, "logprobs": 2}
    choice = (await client.post(PATHS["completions"], json=body)).json()["choices"][0]
    firsts = [next(iter(top)) for top in choice["logprobs"]["top_logprobs"][1:]]
    assert firsts == choice["logprobs"]["tokens"][1:] == ["i", "a"]


def test_tokens_that_are_bytes_need_no_table() -> None:
    class OfBytes:
        """As tokenizers of the kind of tiktoken, which come with a checkpoint."""

        tokens = ("né".encode(), b"\xf0\x9f", b"\x98\x80")
        added_tokens_decoder: ClassVar[dict[int, Any]] = {}
        all_special_ids: ClassVar[list[int]] = []

        def decode(self, token_ids: list[int], **_: Any) -> str:
            return b"".join(self.tokens[i] for i in token_ids).decode("utf-8", "replace")

        def convert_ids_to_tokens(self, token_id: int) -> bytes:
            return self.tokens[token_id]

    tokenizer: Any = OfBytes()
    decoder = TextDecoder(tokenizer, 3)
    assert [decoder.token_bytes(i) for i in range(3)] == list(OfBytes.tokens)


def test_everybody_who_decodes_with_a_tokenizer_has_the_same_tables() -> None:
    tokenizer = load_tokenizer(TINY_STORY)
    assert text_decoder(tokenizer, 2048) is text_decoder(tokenizer, 2048)
