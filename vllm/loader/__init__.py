"""From a checkpoint to a model that can run."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from vllm.config.vllm import VllmConfig
from vllm.errors import ConfigError
from vllm.layers.context import ModelContext
from vllm.layers.weights import Loadable
from vllm.loader import dummy
from vllm.loader.architecture import resolve_model
from vllm.loader.mapping import Filler
from vllm.loader.stream import checkpoint_files, stream
from vllm.loader.ties import broken_ties
from vllm.logger import init_logger
from vllm.models.interfaces import Model
from vllm.ops.registry import resolve
from vllm.platforms.base import Platform

logger = init_logger(__name__)

GIB = 1 << 30


def load_model(config: VllmConfig, platform: Platform, device: torch.device) -> Model:
    """Build the configured model on `device`, fill it, and make it ready to run.

    Raises ConfigError if the model cannot run as configured, LoadError if the checkpoint is broken.
    """
    started = time.monotonic()
    _refuse_quantized(config)
    with torch.no_grad():
        if config.load.load_format == "dummy":
            model = _build(config, platform, device)
            dummy.fill(model, config.model.seed)
        else:
            model = _filled(config, lambda wanted: _build(wanted, platform, device))
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


def _build(config: VllmConfig, platform: Platform, device: torch.device) -> Model:
    ops = resolve(platform.ops())
    context = ModelContext(
        config=config,
        device=device,
        dtype=config.model.dtype,
        ops=ops,
        capabilities=platform.capabilities,
        new_linear_method=platform.linear_method,
        new_experts_method=partial(platform.experts_method, ops),
        attention_backends=platform.attention_backends(),
    )
    return resolve_model(config.model)(context)


def _filled(config: VllmConfig, build: Callable[[VllmConfig], Model]) -> Model:
    """The model with the checkpoint's weights; built again if the checkpoint wants a head."""
    model = build(config)
    load = config.load
    files = checkpoint_files(config.model.path, load.load_format, load.ignore_patterns)
    if broken := broken_ties(model.tied_weights(), files, config.model.dtype):
        del model  # nobody else has it, and a device need not hold both
        model = build(_untied(config))
        _warn_of_ties(broken, model)
    filler = Filler(model, model.weights, model.ignored_weights(), config.model.dtype)
    for name, tensor in stream(files, progress=load.use_tqdm_on_load):
        filler.add(name, tensor)
    filler.finish()
    return model


def _untied(config: VllmConfig) -> VllmConfig:
    hf_config = copy.deepcopy(config.model.hf_config)
    hf_config.tie_word_embeddings = False
    model = dataclasses.replace(config.model, hf_config=hf_config)
    return dataclasses.replace(config, model=model)


def _warn_of_ties(broken: Mapping[str, str], model: Model) -> None:
    """`broken` are ties that the checkpoint contradicts; `model` was built without ties."""
    for name, source in broken.items():
        # Some models share more than a head, whatever the config says.
        used = source if name in model.tied_weights() else name
        logger.warning(
            "config.json ties %s to %s (tie_word_embeddings), but the checkpoint has both and they "
            "differ: the checkpoint's %s is used. Setting tie_word_embeddings to false says so.",
            name,
            source,
            used,
        )


def _refuse_quantized(config: VllmConfig) -> None:
    found = config.model.hf_config.to_dict().get("quantization_config")
    if found:
        method = found.get("quant_method", "unknown")
        raise ConfigError(
            f"{config.model.model} is quantized (quant_method {method!r}), which is not supported. "
            "Use a checkpoint in float32, bfloat16 or float16."
        )
