"""Log-probabilities of chosen tokens and of the most likely ones."""

from __future__ import annotations

import math

from torch import Tensor

from vllm.sample.interface import LogprobTensors


def gather_logprobs(scores: Tensor, token_ids: Tensor, k: int) -> LogprobTensors:
    """Of scores [L, V]: entry 0 is token_ids [L], the others the k largest.

    The rank of a token is 1 + the number of tokens that score more. NaN is given as -inf.
    """
    chosen = token_ids.long().unsqueeze(1)
    chosen_scores = scores.gather(1, chosen)  # [L, 1]
    top_scores, top_ids = scores.topk(k, dim=-1)  # [L, k]
    ranks = (scores > chosen_scores).sum(dim=-1).add_(1)
    values = scores.new_empty((scores.shape[0], 1 + k))
    values[:, :1] = chosen_scores
    values[:, 1:] = top_scores
    ids = chosen.new_empty(values.shape)
    ids[:, :1] = chosen
    ids[:, 1:] = top_ids
    values.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    return LogprobTensors(ids.int(), values, ranks.int())


def spread(part: LogprobTensors, index: Tensor, num_rows: int) -> LogprobTensors:
    """The entries of `part` at rows `index` of num_rows; the other rows are zeros."""

    def placed(values: Tensor) -> Tensor:
        whole = values.new_zeros((num_rows, *values.shape[1:]))
        return whole.index_copy_(0, index, values)

    return LogprobTensors(placed(part.token_ids), placed(part.logprobs), placed(part.ranks))
