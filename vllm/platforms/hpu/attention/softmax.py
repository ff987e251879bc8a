"""Softmax of decode: over each block alone, then merged over the blocks of a row."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm.errors import ConfigError
from vllm.platforms.hpu.attention.metadata import DecodeTables
from vllm.platforms.hpu.attention.settings import AttentionSettings
from vllm.platforms.hpu.kernels import Kernels

# (scores [n, K, G, P] without bias, tables) -> weights [n, K, G, P] in the scores' dtype, and the
# factor [n, K, G, 1] on a block's result that makes the sum over a row's blocks its attention.
# Whatever factors of padding are, they are finite.
BlockSoftmax = Callable[[Tensor, DecodeTables], tuple[Tensor, Tensor]]
# -> weights, and per query head [n, N] float32 the highest score and the sum of weights.
Weigh = Callable[[Tensor, DecodeTables], tuple[Tensor, Tensor, Tensor]]
# (highest scores, sums, tables) -> factor [n, N].
Merge = Callable[[Tensor, Tensor, DecodeTables], Tensor]


def block_softmax(settings: AttentionSettings, kernels: Kernels) -> BlockSoftmax:
    """Raises ConfigError if a kernel is asked for that is not installed."""
    if settings.const_norm is not None:
        fused = kernels.block_softmax_const_max
        if settings.fused_block_softmax and fused is not None:
            return FusedConstant(fused, settings.const_norm)
        return Constant(settings.const_norm)
    parts: list[Any] = [weigh, merge]
    if settings.fused_block_softmax:
        parts[0] = FusedWeigh(_required(kernels.block_softmax, "VLLM_FUSED_BLOCK_SOFTMAX"))
    if settings.fused_block_adjustment:
        kernel = kernels.block_softmax_adjustment
        parts[1] = FusedMerge(_required(kernel, "VLLM_FUSED_BLOCK_SOFTMAX_ADJUSTMENT"))
    return Composed(*parts)


def _required(kernel: Callable[..., Any] | None, variable: str) -> Callable[..., Any]:
    if kernel is None:
        raise ConfigError(
            f"{variable}=true: the installed habana-torch-plugin has no such kernel. "
            "Unset the variable or install a newer release."
        )
    return kernel


def weigh(scores: Tensor, tables: DecodeTables) -> tuple[Tensor, Tensor, Tensor]:
    bias = tables.bias[:, None, None, :]
    biased = scores.to(bias.dtype) + bias
    peak = biased.amax(-1, keepdim=True)
    weights = torch.exp(biased - peak)
    # In float32: a bfloat16 sum of some hundred weights no longer sees the small ones.
    total = weights.sum(-1, dtype=torch.float32)
    return weights.to(scores.dtype), peak.float().flatten(1), total.flatten(1)


# Its "beta" is said on the host's implementation, once per process, and helps nobody.
warnings.filterwarnings("ignore", message=r"index_reduce\(\) is in beta", category=UserWarning)


def merge(peak: Tensor, total: Tensor, tables: DecodeTables) -> Tensor:
    mapping, rows = tables.exact_mapping, tables.group_rows
    # One row more than the launch has, for the blocks of no row.
    peaks = peak.new_full((mapping.shape[1] + 1, peak.shape[1]), -torch.inf)
    peaks = peaks.index_reduce_(0, rows, peak, "amax")
    share = torch.exp(peak - peaks.index_select(0, rows))  # [n, N], in [0, 1]
    totals = mapping @ (mapping.mT @ (total * share))  # [n, N]
    # At least 1 for blocks of a row, by the weight of its highest score; 0 for padding.
    return share / totals.clamp(min=1.0)


@dataclass(frozen=True, slots=True)
class Composed:
    weigh: Weigh
    merge: Merge

    def __call__(self, scores: Tensor, tables: DecodeTables) -> tuple[Tensor, Tensor]:
        weights, peak, total = self.weigh(scores, tables)
        factor = self.merge(peak, total, tables)
        return weights, factor.view(*scores.shape[:-1], 1)


@dataclass(frozen=True, slots=True)
class FusedWeigh:
    kernel: Callable[..., tuple[Tensor, Tensor, Tensor]]

    def __call__(self, scores: Tensor, tables: DecodeTables) -> tuple[Tensor, Tensor, Tensor]:
        heads = scores.shape[1] * scores.shape[2]
        bias = tables.bias[:, None, None, None, :]
        wide = scores.to(bias.dtype).unsqueeze(-2)
        weights, peak, total = self.kernel(wide, bias, tables.block_groups)
        # The statistics may come flattened, with unspecified columns behind the heads.
        peak, total = (x.flatten(1)[:, :heads].float() for x in (peak, total))
        weights = weights.squeeze(-2).to(scores.dtype)
        return weights, self._finite(peak, tables), self._finite(total, tables)

    @staticmethod
    def _finite(statistic: Tensor, tables: DecodeTables) -> Tensor:
        """The kernel leaves those of padding undefined."""
        return statistic.masked_fill(tables.block_groups.unsqueeze(1) < 0, 0.0)


@dataclass(frozen=True, slots=True)
class FusedMerge:
    kernel: Callable[..., Tensor]

    def __call__(self, peak: Tensor, total: Tensor, tables: DecodeTables) -> Tensor:
        num_rows = tables.slot_mapping.shape[0]
        factor = self.kernel(peak, total, tables.block_groups, num_rows, peak.shape)
        return factor.masked_fill(tables.block_groups.unsqueeze(1) < 0, 0.0)


@dataclass(frozen=True, slots=True)
class Constant:
    """Scores less a constant instead of their maximum: overflows where one exceeds it by 88."""

    peak: float

    def __call__(self, scores: Tensor, tables: DecodeTables) -> tuple[Tensor, Tensor]:
        bias = tables.bias[:, None, None, :]
        weights = torch.exp(scores.to(bias.dtype) + bias - self.peak)
        mapping = tables.exact_mapping
        total = weights.sum(-1, dtype=torch.float32).flatten(1)
        totals = mapping @ (mapping.mT @ total)
        # 0 for padding only: it has no share then, whatever its weights are.
        factor = torch.where(totals > 0, 1 / totals, 0.0)
        return weights.to(scores.dtype), factor.view(*scores.shape[:-1], 1)


@dataclass(frozen=True, slots=True)
class FusedConstant:
    kernel: Callable[..., Tensor]
    peak: float

    def __call__(self, scores: Tensor, tables: DecodeTables) -> tuple[Tensor, Tensor]:
        bias = tables.bias[:, None, None, None, :]
        num_rows = tables.slot_mapping.shape[0]
        wide = scores.to(bias.dtype).unsqueeze(-2)
        weights = self.kernel(
            wide, bias, tables.block_groups, num_rows, self.peak, 1.0, scores.dtype
        ).squeeze(-2)
        return weights, scores.new_ones(*scores.shape[:-1], 1)
