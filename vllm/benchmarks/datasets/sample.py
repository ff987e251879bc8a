"""One request of a benchmark, before a backend gives it a shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """`prompt` is token ids where a dataset says lengths, and text where it says words."""

    prompt: list[int] | str
    num_prompt_tokens: int
    max_tokens: int
    at_s: float | None = None  # after the start; None: the request rate decides
