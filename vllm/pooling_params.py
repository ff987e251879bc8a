"""What a request may ask of pooling."""

from __future__ import annotations

import copy

import msgspec

from vllm.errors import BadRequest


class PoolingParams(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Parameters of one embedding, classification or scoring request."""

    dimensions: int | None = None  # of the embedding; None: the model's
    truncate_prompt_tokens: int | None = None  # keep the last ones; -1: what the model can take

    def __post_init__(self) -> None:
        if self.dimensions is not None and self.dimensions < 1:
            raise BadRequest(f"dimensions must be >= 1, got {self.dimensions}", "dimensions")
        truncate = self.truncate_prompt_tokens
        if truncate is not None and (truncate == 0 or truncate < -1):
            raise BadRequest(
                f"truncate_prompt_tokens must be >= 1 or -1, got {truncate}",
                "truncate_prompt_tokens",
            )

    def clone(self) -> PoolingParams:
        return copy.copy(self)
