from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vllm.sample.interface import NO_MASK, SampleRows
from vllm.sample.stages.base import BoolArray
from vllm.sample.state import Want


class GrammarMask:
    """Only tokens that continue the output in its grammar."""

    want = Want.GRAMMAR
    on_host = False

    def wanted(self, rows: SampleRows) -> BoolArray:
        masked: BoolArray = rows.masks_np != NO_MASK
        return masked

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        # Where the stage runs on rows that do not want it, any mask will do for those.
        index = torch.from_numpy(rows.masks_np.clip(0).astype(np.int64))
        masks = rows.masks.index_select(0, index.to(logits.device, non_blocking=True))
        rows.state.ops.apply_token_bitmask(logits, masks)
        return logits
