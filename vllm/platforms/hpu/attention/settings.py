"""What attention on HPU can be asked to do differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch

from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.platforms.hpu import bridge
from vllm.platforms.hpu.bucketing.make import chosen_strategy

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

PromptKind = Literal["fused", "naive", "flex"]


@dataclass(frozen=True, slots=True)
class SliceSettings:
    """Cutting a long prefill behind a prefix into kernel calls of `chunk_tokens` squared."""

    min_tokens: int  # of context and queries together; shorter ones run in one call
    chunk_tokens: int
    graph_breaks: bool = False  # end the lazy graph after each piece
    # Most tokens that a bucket pads the context by; None: nobody knows, all of it may be padding.
    max_context_padding: int | None = None


@dataclass(frozen=True, slots=True)
class AttentionSettings:
    """Resolved once; the platform makes it from the environment and the model."""

    dtype: torch.dtype = torch.bfloat16  # of the model
    fp32_softmax: bool = False
    contiguous: bool = False
    prompt: PromptKind = "fused"
    fused_block_softmax: bool = False
    fused_block_adjustment: bool = False
    const_norm: float | None = None  # taken for the maximum of the scores; None: the real one
    slices: SliceSettings | None = None
    window_kernel_min_tokens: int = 8192
    kernel_slice_tokens: int = 0  # the kernel's own slice of queries; 0: it does not slice

    @property
    def softmax_dtype(self) -> torch.dtype:
        return torch.float32 if self.fp32_softmax else self.dtype


_ADJUSTMENT_SINCE: Final = (1, 22, 0, 494)
# Their scores exceed what bfloat16 keeps apart.
_FP32_SOFTMAX_MODELS: Final = ("qwen2", "qwen2_5_vl")
_SLICE_UNIT: Final = 1024
_LONGEST_SLICE_THRESHOLD: Final = 8192


def attention_settings(config: VllmConfig, env: Environment | None = None) -> AttentionSettings:
    """Raises ConfigError for variables that contradict each other."""
    env = env or Environment()
    is_qwen2 = config.model.hf_config.model_type in _FP32_SOFTMAX_MODELS
    fp32 = env.VLLM_FP32_SOFTMAX
    adjustment = env.VLLM_FUSED_BLOCK_SOFTMAX_ADJUSTMENT
    if adjustment is None:
        adjustment = not is_qwen2 and bridge.is_gaudi3() and _version() >= _ADJUSTMENT_SINCE
    is_const = env.VLLM_SOFTMAX_CONST_NORM
    slices_inside = env.text("PT_HPU_SDPA_QKV_SLICE_MODE_FWD").lower() in ("1", "true")
    return AttentionSettings(
        dtype=config.model.dtype,
        fp32_softmax=is_qwen2 if fp32 is None else fp32,
        contiguous=env.VLLM_CONTIGUOUS_PA,
        prompt=_prompt_kind(env),
        fused_block_softmax=env.VLLM_FUSED_BLOCK_SOFTMAX,
        fused_block_adjustment=adjustment,
        const_norm=env.VLLM_SOFTMAX_CONST_NORM_VALUE if is_const else None,
        slices=_slices(config, env),
        window_kernel_min_tokens=env.VLLM_FUSEDSDPA_SLIDE_THLD,
        kernel_slice_tokens=_kernel_slice(env) if slices_inside else 0,
    )


def _version() -> tuple[int, ...]:
    """Of the plugin, as numbers; empty where unknown."""
    return tuple(int(part) for part in bridge.version().split(".") if part.isdigit())


def _prompt_kind(env: Environment) -> PromptKind:
    if env.VLLM_PROMPT_USE_FLEX_ATTENTION:
        if env.is_set("VLLM_PROMPT_USE_FUSEDSDPA") and env.VLLM_PROMPT_USE_FUSEDSDPA:
            raise ConfigError(
                "VLLM_PROMPT_USE_FLEX_ATTENTION=1 and VLLM_PROMPT_USE_FUSEDSDPA=1 ask for "
                "different kernels: unset one of them."
            )
        if bridge.is_lazy():
            raise ConfigError(
                "VLLM_PROMPT_USE_FLEX_ATTENTION=1: flex_attention needs torch.compile, which lazy "
                "mode does not have. Set PT_HPU_LAZY_MODE=0 or unset the variable."
            )
        return "flex"
    return "fused" if env.VLLM_PROMPT_USE_FUSEDSDPA else "naive"


def _kernel_slice(env: Environment) -> int:
    """Queries per slice of the kernel's own slicing."""
    text = env.text("PT_HPU_SDPA_BR_FACTOR") or str(_SLICE_UNIT)
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(
            f"environment variable PT_HPU_SDPA_BR_FACTOR={text!r}: must be a whole number of "
            "tokens, 1 or more. Correct it or unset it."
        )
    return int(text)


def _slices(config: VllmConfig, env: Environment) -> SliceSettings | None:
    enabled = env.VLLM_HPU_FSDPA_SLICE_ENABLED
    pads = chosen_strategy(env) == "padding-aware"
    if not (pads if enabled is None else enabled):
        return None
    batched = config.scheduler.max_num_batched_tokens
    minimum = env.VLLM_HPU_FSDPA_SLICE_SEQ_LEN_THLD or min(batched, _LONGEST_SLICE_THRESHOLD)
    half = -(-(minimum // 2) // _SLICE_UNIT) * _SLICE_UNIT
    breaks = env.VLLM_HPU_FSDPA_SLICE_WITH_GRAPH_BREAKS
    captures = bridge.is_lazy() and not config.device.enforce_eager
    return SliceSettings(
        min_tokens=minimum,
        chunk_tokens=env.VLLM_HPU_FSDPA_SLICE_CHUNK_SIZE or max(_SLICE_UNIT, half),
        graph_breaks=(bridge.is_lazy() and not captures) if breaks is None else breaks,
    )
