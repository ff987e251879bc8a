"""From a checkpoint to a model that can run."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from vllm.config.vllm import VllmConfig
from vllm.device.collectives import Alone, Collectives, Imagined
from vllm.distributed.groups import SINGLE, Group
from vllm.errors import ConfigError, LoadError
from vllm.layers.context import ModelContext
from vllm.layers.dispatch import ExpertRanks
from vllm.layers.schemes import Checkpoint
from vllm.layers.shapes import UnevenShares
from vllm.loader import dummy
from vllm.loader.architecture import resolve_model
from vllm.loader.build import allocate, choose
from vllm.loader.filler import Filler, loadable_layers
from vllm.loader.rules import RuleTable
from vllm.loader.schemes import refuse_unknown_formats, scheme_of
from vllm.loader.stream import checkpoint_files, stream, tensor_names
from vllm.loader.ties import broken_ties
from vllm.logger import init_logger
from vllm.models.interfaces import Model
from vllm.ops.registry import resolve
from vllm.platforms.base import Platform

logger = init_logger(__name__)

GIB = 1 << 30
MOST_RANKS = 64  # that an error names


def load_model(
    config: VllmConfig,
    platform: Platform,
    device: torch.device,
    tp: Collectives | None = None,
    pp: Group = SINGLE,
    experts: ExpertRanks | None = None,
) -> Model:
    """Build the configured model on `device`, fill it, and make it ready to run.

    `tp` are the ranks that share every layer, by default this one alone; it loads its share. `pp`
    is this rank's stage of the pipeline, whose layers alone are built. `experts` are the ranks of
    all copies of the model, where these share experts.
    Raises ConfigError if the model cannot run as configured, LoadError if the checkpoint is broken.
    """
    started = time.monotonic()
    refuse_unknown_formats(config)
    with torch.no_grad():
        if config.load.load_format == "dummy":
            model = _declared(config, platform, device, tp, pp, experts)
            _take_memory(model, config, platform, device, ())
            dummy.fill(model, config.model.seed)
        else:
            files = _files(config)
            model = _fitting(
                config, files, lambda wanted: _declared(wanted, platform, device, tp, pp, experts)
            )
            _take_memory(model, config, platform, device, files)
            _fill(model, config, files, _shows_progress(config, 0 if tp is None else tp.rank))
    num_bytes = sum(p.nbytes for p in model.parameters())
    logger.info(
        "Loaded %s: %.2f GiB of weights in %.1f s",
        config.model.architecture,
        num_bytes / GIB,
        time.monotonic() - started,
    )
    return model


def reload_weights(
    model: Model, config: VllmConfig, path: Path | None = None, rank: int = 0
) -> None:
    """Fill a loaded `model` again, in place, from the checkpoint at `path`, by default its own.

    The checkpoint must have the shapes and the encoding of the first one. Raises LoadError: before
    anything is changed if it has not; if files cannot be read, the model holds a mixture of both
    and must be filled again before it is used.
    """
    files = _files(config, path)
    if broken := broken_ties(model.tied_weights(), files, config.model.dtype):
        raise LoadError(
            f"the loaded model ties {', '.join(broken)} to the embedding, and this checkpoint has "
            "another one. Start a new engine for it."
        )
    with torch.no_grad():
        rules, dtype = _rules(model), config.model.dtype
        check = Filler(model, rules, dtype, fills=False, is_elsewhere=model.is_elsewhere)
        check.run(stream(files, progress=False))
        try:
            _fill(model, config, files, _shows_progress(config, rank))
        finally:
            for _, layer in loadable_layers(model):
                layer.unstage_all()


def _declared(
    config: VllmConfig,
    platform: Platform,
    device: torch.device,
    tp: Collectives | None,
    pp: Group,
    experts: ExpertRanks | None,
) -> Model:
    """The model without memory for its weights.

    Raises ConfigError, which lists the numbers of ranks that could share it if `tp` cannot.
    """
    try:
        return _declare(config, platform, device, tp, pp, experts)
    except UnevenShares as error:

        def can_share(size: int) -> bool:
            try:
                _declare(config, platform, device, Imagined(size), pp, experts)
            except UnevenShares:
                return False
            return True

        heads = getattr(config.model.hf_config, "num_attention_heads", 0)
        sizes = [n for n in range(1, MOST_RANKS + 1) if heads % n == 0 and can_share(n)]
        choice = f" Choose one of {', '.join(map(str, sizes))}." if sizes else ""
        raise ConfigError(f"{error}{choice}") from error


def _declare(
    config: VllmConfig,
    platform: Platform,
    device: torch.device,
    tp: Collectives | None,
    pp: Group,
    experts: ExpertRanks | None,
) -> Model:
    context = ModelContext(
        config=config,
        device=device,
        dtype=config.model.dtype,
        ops=resolve(platform.ops()),
        capabilities=platform.capabilities,
        attention_backends=platform.attention_backends(config),
        tp=tp or Alone(),
        pp=pp,
        experts=experts,
    )
    implementation = resolve_model(config.model)
    if pp.size > 1 and not implementation.has_stages:
        raise ConfigError(
            f"--pipeline-parallel-size {pp.size}: {implementation.__name__} computes all layers of "
            f"{config.model.architecture} and cannot be a stage of them. Leave it out, or use "
            "--model-impl transformers."
        )
    model = implementation(context)
    model.requires_grad_(False).eval()
    return model


def _take_memory(
    model: Model,
    config: VllmConfig,
    platform: Platform,
    device: torch.device,
    files: Sequence[Path],
) -> None:
    methods = platform.weight_methods(resolve(platform.ops()))
    names = functools.cache(lambda: tensor_names(files))
    checkpoint = Checkpoint(_rules(model).module_names, lambda name: name in names())
    choose(model, scheme_of(config, methods, checkpoint))
    allocate(model, device)


def _rules(model: Model) -> RuleTable:
    return RuleTable(model.weights, model.ignored_weights())


def _files(config: VllmConfig, path: Path | None = None) -> list[Path]:
    load = config.load
    if path is None and load.load_format == "dummy":
        raise LoadError(
            "the first weights were random (--load-format dummy): give the path of a checkpoint"
        )
    load_format = "auto" if load.load_format == "dummy" else load.load_format
    return checkpoint_files(path or config.model.path, load_format, load.ignore_patterns)


def _shows_progress(config: VllmConfig, rank: int) -> bool:
    """All ranks read at the same time: one bar says it."""
    return config.load.use_tqdm_on_load and rank == 0


def _fill(model: Model, config: VllmConfig, files: Sequence[Path], shows_progress: bool) -> None:
    dtype = config.model.dtype
    filler = Filler(model, _rules(model), dtype, is_elsewhere=model.is_elsewhere)
    filler.run(stream(files, progress=shows_progress))


def _fitting(
    config: VllmConfig, files: Sequence[Path], declared: Callable[[VllmConfig], Model]
) -> Model:
    """The model declared for `files`: with a head of its own if they hold one that differs."""
    model = declared(config)
    if broken := broken_ties(model.tied_weights(), files, config.model.dtype):
        del model  # the fallback's has memory, and a device need not hold both
        model = declared(_untied(config))
        _warn_of_ties(broken, model)
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
