"""Log-probabilities in the two shapes of the OpenAI API, and in vLLM's for prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vllm.entrypoints.openai.protocol.chat import ChatLogprobs, TokenLogprob, TopLogprob
from vllm.entrypoints.openai.protocol.common import PromptLogprob, PromptLogprobsField
from vllm.entrypoints.openai.protocol.completion import CompletionLogprobs
from vllm.outputs import Logprob

# JSON has no infinity; clients know this value as "impossible".
LOWEST_LOGPROB = -9999.0

Alternatives = Mapping[int, Logprob]
TokenNamer = Callable[[int, Logprob | None], str]


def token_namer(decode: Callable[[int], str], as_token_ids: bool) -> TokenNamer:
    """How a token is written: as its text, or as "token_id:N", from which it can be recovered."""
    if as_token_ids:
        return lambda token_id, _: f"token_id:{token_id}"

    def text(token_id: int, logprob: Logprob | None) -> str:
        if logprob is not None and logprob.decoded_token is not None:
            return logprob.decoded_token
        return decode(token_id)

    return text


class CompletionLogprobsBuilder:
    """Turns the tokens of one choice, in order, into /v1/completions' shape."""

    def __init__(self, name: TokenNamer, num_alternatives: int) -> None:
        self.name = name
        self.num_alternatives = num_alternatives
        self.offset = 0

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[Alternatives | None]
    ) -> CompletionLogprobs:
        """One entry per token; None where there is no log-probability (the first of a prompt)."""
        out = CompletionLogprobs([], [], [], [])
        for token_id, alternatives in zip(token_ids, logprobs, strict=True):
            own = None if alternatives is None else alternatives[token_id]
            token = self.name(token_id, own)
            out.text_offset.append(self.offset)
            out.tokens.append(token)
            out.token_logprobs.append(None if own is None else finite(own.logprob))
            out.top_logprobs.append(
                None if alternatives is None else self._top(token_id, alternatives)
            )
            self.offset += len(token)
        return out

    def _top(self, token_id: int, alternatives: Alternatives) -> dict[str, float]:
        return {
            self.name(other, logprob): finite(logprob.logprob)
            for i, (other, logprob) in enumerate(best_first(alternatives))
            if i < self.num_alternatives or other == token_id
        }


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
            _top_logprob(name(other, logprob), logprob)
            for other, logprob in best_first(alternatives)[:num_alternatives]
        ]
        content.append(TokenLogprob(token, finite(own.logprob), _bytes(token), top))
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


def _top_logprob(token: str, logprob: Logprob) -> TopLogprob:
    return TopLogprob(token, finite(logprob.logprob), _bytes(token))


def _bytes(token: str) -> list[int]:
    return list(token.encode("utf-8", "replace"))
