"""Log-probabilities in the two shapes of the OpenAI API, and in vLLM's for prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm.entrypoints.openai.protocol.chat import ChatLogprobs, TokenLogprob, TopLogprob
from vllm.entrypoints.openai.protocol.common import PromptLogprob, PromptLogprobsField
from vllm.entrypoints.openai.protocol.completion import CompletionLogprobs
from vllm.entrypoints.openai.serving.echo import EchoedPrompt
from vllm.outputs import Logprob
from vllm.transformers_utils.detokenizer import TextDecoder, TextStream

# JSON has no infinity; clients know this value as "impossible".
LOWEST_LOGPROB = -9999.0

Alternatives = Mapping[int, Logprob]


class TokenNamer:
    """How a token is written: as its text, or as "token_id:N", from which it can be recovered."""

    def __init__(self, decoder: TextDecoder, as_token_ids: bool) -> None:
        self._decoder = decoder
        self._as_token_ids = as_token_ids

    def __call__(self, token_id: int, logprob: Logprob | None) -> str:
        if self._as_token_ids:
            return f"token_id:{token_id}"
        if logprob is not None and logprob.decoded_token is not None:
            return logprob.decoded_token
        return self._decoder.token_text(token_id)

    def bytes(self, token_id: int) -> list[int]:
        """The token's own, not those of its name: half a character has no text."""
        return list(self._decoder.token_bytes(token_id))


class CompletionLogprobsBuilder:
    """Turns the tokens of one choice, in order, into /v1/completions' shape.

    An offset is where in the choice's text a token begins; of one that is in the middle of a
    character, where that does. Tokens that are no part of the text are where they would be.
    """

    def __init__(self, name: TokenNamer, num_alternatives: int, text: TextStream) -> None:
        """`text` is the text of the tokens that are pushed."""
        self.name = name
        self.num_alternatives = num_alternatives
        self.offset = 0
        self._text = text

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[Alternatives | None]
    ) -> CompletionLogprobs:
        """One entry per token."""
        offsets = []
        for token_id in token_ids:
            offsets.append(self.offset)
            self.offset += len(self._text.push((token_id,)))
        return self._made(token_ids, logprobs, offsets)

    def push_prompt(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[Alternatives | None],
        echoed: EchoedPrompt,
    ) -> CompletionLogprobs:
        """As `push`, before it; None where there is no log-probability, as of the first token."""
        self.offset += len(echoed.text)
        return self._made(token_ids, logprobs, echoed.offsets)

    def _made(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[Alternatives | None],
        offsets: Sequence[int],
    ) -> CompletionLogprobs:
        out = CompletionLogprobs(list(offsets), [], [], [])
        for token_id, alternatives in zip(token_ids, logprobs, strict=True):
            own = None if alternatives is None else alternatives[token_id]
            out.tokens.append(self.name(token_id, own))
            out.token_logprobs.append(None if own is None else finite(own.logprob))
            out.top_logprobs.append(
                None if alternatives is None else self._top(token_id, alternatives)
            )
        return out

    def _top(self, token_id: int, alternatives: Alternatives) -> dict[str, float]:
        """The token itself, then the best; of tokens that read the same, the best one's value."""
        own = alternatives[token_id]
        top = {self.name(token_id, own): finite(own.logprob)}
        for other, logprob in best_first(alternatives)[: self.num_alternatives]:
            text, value = self.name(other, logprob), finite(logprob.logprob)
            top[text] = max(value, top.get(text, value))
        return top


def chat_logprobs(
    name: TokenNamer,
    num_alternatives: int,
    token_ids: Sequence[int],
    logprobs: Sequence[Alternatives],
) -> ChatLogprobs:
    content = []
    for token_id, alternatives in zip(token_ids, logprobs, strict=True):
        own = alternatives[token_id]
        token = name(token_id, own)
        top = [
            TopLogprob(name(other, logprob), finite(logprob.logprob), name.bytes(other))
            for other, logprob in best_first(alternatives)[:num_alternatives]
        ]
        content.append(TokenLogprob(token, finite(own.logprob), name.bytes(token_id), top))
    return ChatLogprobs(content)


def prompt_logprobs(
    name: TokenNamer, logprobs: Sequence[Alternatives | None]
) -> PromptLogprobsField:
    return [
        None
        if alternatives is None
        else {
            str(token_id): PromptLogprob(
                finite(logprob.logprob), logprob.rank, name(token_id, logprob)
            )
            for token_id, logprob in alternatives.items()
        }
        for alternatives in logprobs
    ]


def best_first(alternatives: Alternatives) -> list[tuple[int, Logprob]]:
    return sorted(alternatives.items(), key=lambda item: -item[1].logprob)


def finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
