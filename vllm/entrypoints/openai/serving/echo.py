"""A prompt that is repeated before its continuation, and where its tokens are in that text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

from vllm.sampling_params import SamplingParams
from vllm.transformers_utils.detokenizer import TextDecoder
from vllm.transformers_utils.tokenizer import backend_of


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    text: str
    offsets: list[int]  # of every token


def echoed_prompt(decoder: TextDecoder, token_ids: list[int], text: str | None) -> EchoedPrompt:
    """`text` is what became `token_ids`, with the tokens that the tokenizer puts around a text.

    None: the prompt was given as tokens, and its text is all that they say.
    """
    if text is None:
        text = decoder.decode(token_ids)
        return EchoedPrompt(text, _offsets(decoder, token_ids)[0])
    is_special = decoder.special_ids.__contains__
    num_before = sum(1 for _ in takewhile(is_special, token_ids))
    for num_added in range(num_before, -1, -1):
        offsets, decoded = _offsets(decoder, token_ids[num_added:])
        if not decoded.startswith(text):
            continue
        behind = (
            i for i, at in zip(token_ids[num_added:], offsets, strict=True) if at >= len(text)
        )
        if all(map(is_special, behind)):
            inside = [min(at, len(text)) for at in offsets]
            return EchoedPrompt(text, [0] * num_added + inside)
    return EchoedPrompt(text, _offsets_of_tokenizer(decoder, token_ids, text))


def _offsets(decoder: TextDecoder, token_ids: list[int]) -> tuple[list[int], str]:
    """Where each token begins in the text of all, which is returned too."""
    stream = decoder.stream(SamplingParams(skip_special_tokens=False), [])
    pieces = [stream.push((token_id,)) for token_id in token_ids]
    ends = accumulate(map(len, pieces))
    return [0, *ends][: len(token_ids)], "".join([*pieces, stream.finish()])


def _offsets_of_tokenizer(decoder: TextDecoder, token_ids: list[int], text: str) -> list[int]:
    """For a tokenizer that changes a text before it cuts it."""
    backend = backend_of(decoder.tokenizer)
    encoding = None if backend is None else backend.encode(text)
    if encoding is None or encoding.ids != token_ids:
        return [min(at, len(text)) for at in _offsets(decoder, token_ids)[0]]
    return _without_gaps(encoding.offsets, text)


def _without_gaps(spans: Sequence[tuple[int, int]], text: str) -> list[int]:
    """Begins of `spans`; some tokenizers leave out of them the space that a token begins with."""
    offsets: list[int] = []
    end = 0
    for begin, next_end in spans:
        if next_end == 0:  # a token that was added to the text
            begin = end
        while begin > end and text[begin - 1].isspace():
            begin -= 1
        offsets.append(begin)
        end = max(end, next_end)
    return offsets
