"""Text to tokens and back, by the served model's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import httpx

from vllm.errors import ConfigError, LoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Its tokens are what prompts are drawn from: whatever the tokenizer, they are ordinary ones.
SAMPLE_TEXT = (
    "The quick brown fox jumps over the lazy dog. Once upon a time a small girl lived near the "
    "river with her mother, two cats and 17 books about trains, ships, the moon and the sea."
)
ATTEMPTS = 12
TIMEOUT_S = 60.0


class Codec(Protocol):
    def encode(self, text: str) -> list[int]:
        """As a prompt of this text becomes tokens, special ones included."""
        ...

    def encode_plain(self, text: str) -> list[int]:
        """Without special tokens."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


class LocalCodec:
    """A tokenizer of this process, asked for when first needed."""

    def __init__(self, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, name: str, mode: str, trust_remote_code: bool) -> LocalCodec:
        """From a directory or a hub name. Raises LoadError."""
        # Takes a second, which a server's own tokenizer does not.
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                name, use_fast=mode != "slow", trust_remote_code=trust_remote_code
            )
        except Exception as error:  # transformers and a tokenizer's own code raise anything
            raise LoadError(f"--tokenizer {name}: {type(error).__name__}: {error}") from error
        return cls(lambda: tokenizer)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer().encode(text))

    def encode_plain(self, text: str) -> list[int]:
        return list(self.tokenizer().encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer().decode(list(token_ids)))


class ServerCodec:
    """The server's own /tokenize and /detokenize, so that nothing has to be loaded here."""

    def __init__(self, url: str, headers: dict[str, str], model: str, verify: bool = True) -> None:
        self.model = model
        self.client = httpx.Client(
            base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False, verify=verify
        )

    def encode(self, text: str) -> list[int]:
        return list(self._post("/tokenize", {"prompt": text})["tokens"])

    def encode_plain(self, text: str) -> list[int]:
        body = {"prompt": text, "add_special_tokens": False}
        return list(self._post("/tokenize", body)["tokens"])

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._post("/detokenize", {"tokens": list(token_ids)})["prompt"])

    def _post(self, path: str, body: dict[str, object]) -> dict[str, list[int]]:
        try:
            answer = self.client.post(path, json={"model": self.model, **body})
        except httpx.HTTPError as error:
            raise ConfigError(f"the server cannot be used: POST {path}: {error}") from error
        if answer.status_code >= 400:
            raise ConfigError(
                f"the server cannot tokenize: POST {path}: status {answer.status_code}: "
                f"{answer.text[:300]}. Give --tokenizer to do it here."
            )
        found: dict[str, list[int]] = answer.json()
        return found


def ordinary_tokens(codec: Codec) -> list[int]:
    """The distinct tokens of some plain English, in the order of their ids."""
    return sorted(set(codec.encode_plain(SAMPLE_TEXT)))


def text_of_length(codec: Codec, token_ids: Sequence[int]) -> tuple[str, int]:
    """Text close to `token_ids` and its length in tokens: theirs, unless no text was found.

    Neighbours may merge when decoded text is tokenized again, and a tokenizer may add tokens.
    """
    wanted = len(token_ids)
    ids = list(token_ids)
    best, best_length = "", 0
    for _ in range(ATTEMPTS):
        text = codec.decode(ids)
        length = len(codec.encode(text)) if text else 0
        if length == wanted:
            return text, length
        if not best or abs(length - wanted) < abs(best_length - wanted):
            best, best_length = text, length
        surplus = length - wanted
        if surplus > 0:
            ids = ids[:-surplus] or ids[:1]
        else:
            ids += (list(token_ids) * (1 - surplus // max(wanted, 1)))[:-surplus]
    return best, best_length
