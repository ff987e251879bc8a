"""The scheme that the configuration of a checkpoint asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from vllm.config.vllm import VllmConfig
from vllm.errors import ConfigError
from vllm.layers.methods import DeviceMethods
from vllm.layers.quantization.compressed_tensors import CompressedTensors
from vllm.layers.schemes import Checkpoint, Scheme

_Maker = Callable[[DeviceMethods, Checkpoint, Mapping[str, Any]], Scheme]
# By `quant_method` of the quantization_config in config.json.
_SCHEMES: Final[Mapping[str, _Maker]] = {"compressed-tensors": CompressedTensors}


def scheme_of(config: VllmConfig, methods: DeviceMethods, checkpoint: Checkpoint) -> Scheme:
    """Raises ConfigError if the checkpoint is quantized in a way that is not supported."""
    facts = _facts(config)
    if not facts:
        return Scheme(methods)
    return _SCHEMES[facts["quant_method"]](methods, checkpoint, facts)


def refuse_unknown_formats(config: VllmConfig) -> None:
    """Raises ConfigError if the checkpoint is in a format of quantization that has no scheme."""
    facts = _facts(config)
    name = facts.get("quant_method", "unknown")
    if facts and name not in _SCHEMES:
        raise ConfigError(
            f"{config.model.model} is quantized (quant_method {name!r}), which is not supported; "
            f"supported are {', '.join(_SCHEMES)}. Use a checkpoint in one of them, or in float32, "
            "bfloat16 or float16."
        )


def _facts(config: VllmConfig) -> Mapping[str, Any]:
    """`quantization_config` of config.json; empty if the checkpoint is not quantized."""
    return config.model.hf_config.to_dict().get("quantization_config") or {}
