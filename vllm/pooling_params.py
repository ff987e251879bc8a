"""What a request may ask of pooling."""

from __future__ import annotations

import copy
from typing import Any

import msgspec

from vllm.errors import BadRequest
from vllm.sampling_params import RequestOutputKind


class PoolingParams(msgspec.Struct, omit_defaults=True):
    """Parameters of one embedding, classification or scoring request.

    They can be made and are checked as far as that needs no model; no engine runs one yet.
    """

    truncate_prompt_tokens: int | None = None  # keep the last ones; -1: what the model can take
    dimensions: int | None = None  # of the embedding; None: the model's
    normalize: bool | None = None
    activation: bool | None = None
    softmax: bool | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    task: str | None = None
    requires_token_ids: bool = False
    extra_kwargs: dict[str, Any] | None = None
    output_kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY

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
