"""Log-probabilities of chosen tokens and of the most likely ones."""

from __future__ import annotations

from torch import Tensor

from vllm.sample.interface import LogprobTensors


def spread(part: LogprobTensors, index: Tensor, num_rows: int) -> LogprobTensors:
    """The entries of `part` at rows `index` of num_rows; the other rows are zeros."""

    def placed(values: Tensor) -> Tensor:
        whole = values.new_zeros((num_rows, *values.shape[1:]))
        return whole.index_copy_(0, index, values)

    return LogprobTensors(placed(part.token_ids), placed(part.logprobs), placed(part.ranks))
