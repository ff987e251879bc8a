"""From a checkpoint to a model that can run."""

from __future__ import annotations

import time

import torch
from torch import nn

from vllm.config.vllm import VllmConfig
from vllm.errors import ConfigError
from vllm.layers.context import ModelContext
from vllm.layers.weights import Loadable
from vllm.loader import dummy
from vllm.loader.mapping import Filler
from vllm.loader.stream import checkpoint_files, stream
from vllm.logger import init_logger
from vllm.models.interfaces import Model
from vllm.models.registry import resolve_model
from vllm.platforms.base import Platform

logger = init_logger(__name__)

GIB = 1 << 30


def load_model(config: VllmConfig, platform: Platform, device: torch.device) -> Model:
    """Build the configured model on `device`, fill it, and make it ready to run.

    Raises ConfigError if the model cannot run as configured, LoadError if the checkpoint is broken.
    """
    started = time.monotonic()
    _refuse_quantized(config)
    context = ModelContext.create(config, platform, device)
    with torch.no_grad():
        model = resolve_model(config.model)(context)
        if config.load.load_format == "dummy":
            dummy.fill(model, config.model.seed)
        else:
            _fill(model, config)
        finish(model)
    num_bytes = sum(p.nbytes for p in model.parameters())
    logger.info(
        "Loaded %s: %.2f GiB of weights in %.1f s",
        config.model.architecture,
        num_bytes / GIB,
        time.monotonic() - started,
    )
    return model


def finish(model: nn.Module) -> None:
    """Let every layer prepare its weights for use. Call once, after filling."""
    model.requires_grad_(False).eval()
    for module in list(model.modules()):  # layers may drop parts that they absorbed
        if isinstance(module, Loadable):
            module.finish()


def _fill(model: Model, config: VllmConfig) -> None:
    load = config.load
    files = checkpoint_files(config.model.path, load.load_format, load.ignore_patterns)
    filler = Filler(model, model.weights, model.ignored_weights())
    for name, tensor in stream(files, progress=load.use_tqdm_on_load):
        filler.add(name, tensor)
    filler.finish()


def _refuse_quantized(config: VllmConfig) -> None:
    found = config.model.hf_config.to_dict().get("quantization_config")
    if found:
        method = found.get("quant_method", "unknown")
        raise ConfigError(
            f"{config.model.model} is quantized (quant_method {method!r}), which is not supported. "
            "Use a checkpoint in float32, bfloat16 or float16."
        )
