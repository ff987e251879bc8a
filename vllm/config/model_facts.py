"""ModelConfig from the settings and what the checkpoint says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from vllm.config.draft import Draft
from vllm.config.model import DTYPE_NAMES, ModelConfig
from vllm.errors import ConfigError, LoadError
from vllm.logger import init_logger
from vllm.transformers_utils import config as checkpoints
from vllm.transformers_utils.config import Checkpoint
from vllm.transformers_utils.end_tokens import end_token_ids
from vllm.transformers_utils.hub import TOKENIZER_FILES, Source, locate, weight_patterns
from vllm.transformers_utils.tokenizer import load_tokenizer
from vllm.utils.text import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = init_logger(__name__)

DTYPES: Final = {
    "half": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "float32": torch.float32,
}
# Names in generation_config.json -> fields of SamplingParams.
_SAMPLING_NAMES: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
_OVERRIDES: Final = frozenset({*_SAMPLING_NAMES, "max_tokens", "eos_token_id"})
# Length of a model that states none; what such models were usually trained on.
_UNSTATED_LENGTH: Final = 2048


def resolve_model(draft: Draft) -> ModelConfig:
    """Finds the checkpoint (fetching it if it is on the hub) and settles all about the model."""
    fields = draft.of(ModelConfig)
    path = locate(_source(draft, "model"), weight_patterns(draft.values["load_format"]))
    fields["tokenizer"] = fields["tokenizer"] or fields["model"]
    fields["tokenizer_revision"] = fields["tokenizer_revision"] or fields["revision"]
    tokenizer_path = path
    if fields["tokenizer"] != fields["model"]:
        tokenizer_path = locate(_source(draft, "tokenizer"), TOKENIZER_FILES)
    checkpoint = _checkpoint(draft, path)
    if callable(fields["hf_overrides"]):
        fields["hf_overrides"] = {}  # applied, and a function need not survive the way to a worker
    fields["code_revision"] = fields["code_revision"] or fields["revision"]
    fields["hf_config_path"] = fields["hf_config_path"] or str(path)
    fields["served_model_name"] = fields["served_model_name"] or (fields["model"],)
    fields["max_model_len"] = _max_model_len(draft, checkpoint)
    fields["dtype"] = _dtype(draft, checkpoint)
    if fields["disable_sliding_window"]:
        _drop_window(checkpoint)
    generation = _generation_config(draft, path)
    return ModelConfig(
        **fields,
        path=path,
        tokenizer_path=tokenizer_path,
        hf_config=checkpoint.hf_config,
        architecture=checkpoint.architecture,
        vocab_size=_vocab_size(checkpoint),
        eos_token_ids=_end_token_ids(fields, checkpoint, generation, tokenizer_path),
        default_sampling_params=_sampling_params(generation),
    )


def _named_dtype(asked: Any, draft: Draft) -> torch.dtype:
    """The torch dtype of a name. Raises ConfigError if there is none or the device lacks it."""
    dtype = asked if isinstance(asked, torch.dtype) else DTYPES.get(str(asked).lower())
    names = [str(known).removeprefix("torch.") for known in draft.capabilities.dtypes]
    if dtype is None:
        hint = did_you_mean(asked, DTYPE_NAMES)
        raise ConfigError(f"--dtype {asked}: not one of {', '.join(DTYPE_NAMES)}.{hint}")
    if dtype not in draft.capabilities.dtypes:
        raise ConfigError(
            f"--dtype {asked}: device {draft.values['device']} does not compute in it. Choose "
            f"{', '.join(names)}."
        )
    return dtype


def _source(draft: Draft, name: str) -> Source:
    values = draft.values
    revision = values["revision"]
    if name == "tokenizer":
        revision = values["tokenizer_revision"] or revision
    return Source(
        name=values[name],
        flag="--" + name.replace("_", "-"),
        revision=revision,
        download_dir=values["download_dir"] or None,
        token=values["hf_token"] or None,
        ignore=values["ignore_patterns"],
    )


def _checkpoint(draft: Draft, path: Path) -> Checkpoint:
    values = draft.values
    config_path = path
    if values["hf_config_path"]:
        config_path = locate(_source(draft, "hf_config_path"), ("*.json", "*.py"))
    return checkpoints.load_checkpoint(
        path,
        config_path=config_path,
        overrides=values["hf_overrides"],
        trust_remote_code=values["trust_remote_code"],
        code_revision=values["code_revision"],
    )


def _dtype(draft: Draft, checkpoint: Checkpoint) -> torch.dtype:
    asked = draft.values["dtype"]
    if asked != "auto":
        return _named_dtype(asked, draft)
    found = checkpoints.checkpoint_dtype(checkpoint)
    capabilities = draft.capabilities
    if found in capabilities.dtypes:
        return found
    logger.info(
        "The checkpoint is in %s, which device %s does not compute in: using %s",
        found,
        draft.values["device"],
        capabilities.default_dtype,
    )
    return capabilities.default_dtype


def _max_model_len(draft: Draft, checkpoint: Checkpoint) -> int:
    asked: int | None = draft.values["max_model_len"]
    limit = checkpoints.longest_length(checkpoint)
    if limit is None:
        if asked is None:
            logger.warning(
                "The model does not say how many positions it knows: assuming %d. "
                "--max-model-len says otherwise.",
                _UNSTATED_LENGTH,
            )
        return asked or _UNSTATED_LENGTH
    window = checkpoints.window_of(checkpoint)
    if draft.values["disable_sliding_window"] and window is not None:
        if asked is not None and asked > window:
            raise ConfigError(
                f"--max-model-len {asked}: the model attends over {window} tokens, which is the "
                "most with --disable-sliding-window. Leave either out."
            )
        limit = min(limit, window)
    if asked is None or asked <= limit:
        return asked or limit
    return _beyond(asked, limit, checkpoint, allowed=draft.env.VLLM_ALLOW_LONG_MAX_MODEL_LEN)


def _beyond(asked: int, limit: int, checkpoint: Checkpoint, allowed: bool) -> int:
    if checkpoints.has_learned_positions(checkpoint):
        raise ConfigError(
            f"--max-model-len {asked}: the model has embeddings for {limit} positions and no more. "
            f"Lower it to {limit}."
        )
    if not allowed:
        raise ConfigError(
            f"--max-model-len {asked}: the model was made for {limit} tokens. Lower it, set a rope "
            "scaling with --hf-overrides, or, if you know that it can do more, set "
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1."
        )
    logger.warning("--max-model-len %d is more than the %d the model was made for", asked, limit)
    return asked


def _vocab_size(checkpoint: Checkpoint) -> int:
    size = checkpoint.hf_config.to_dict().get("vocab_size")
    if not isinstance(size, int) or size < 1:
        raise LoadError(f"{checkpoint.path / 'config.json'} has no usable vocab_size: {size!r}")
    return size


def _drop_window(checkpoint: Checkpoint) -> None:
    config = checkpoint.hf_config
    values = config.to_dict()
    if "sliding_window" in values:
        config.sliding_window = None
    if values.get("layer_types"):
        config.layer_types = ["full_attention"] * len(values["layer_types"])


def _end_token_ids(
    fields: Mapping[str, Any],
    checkpoint: Checkpoint,
    generation: Mapping[str, Any],
    tokenizer_path: Path,
) -> frozenset[int]:
    def load() -> PreTrainedTokenizerBase:
        if fields["skip_tokenizer_init"]:
            raise LoadError("--skip-tokenizer-init: no tokenizer is loaded")
        return load_tokenizer(
            tokenizer_path,
            fields["tokenizer_mode"],
            fields["trust_remote_code"],
            fields["tokenizer_revision"],
        )

    return end_token_ids(checkpoint, generation, tokenizer_path, load)


def _generation_config(draft: Draft, path: Path) -> Mapping[str, Any]:
    """generation_config.json as configured, overrides included."""
    where = draft.values["generation_config"]
    overrides = draft.values["override_generation_config"]
    for name in overrides:
        if name not in _OVERRIDES:
            raise ConfigError(
                f"--override-generation-config sets {name!r}, which is not one of "
                f"{', '.join(sorted(_OVERRIDES))}.{did_you_mean(name, _OVERRIDES)}"
            )
    found: dict[str, Any] = {}
    if where == "auto":
        found = checkpoints.read_json(path / "generation_config.json")
    elif where != "vllm":
        file = Path(where).expanduser() / "generation_config.json"
        if not file.is_file():
            raise ConfigError(
                f"--generation-config {where}: there is no {file}. Give auto, vllm or a directory "
                "that has one."
            )
        found = checkpoints.read_json(file)
    if where == "vllm":  # its stop tokens are facts of the model all the same
        found = {k: v for k, v in _stored(path).items() if k == "eos_token_id"}
    return {**found, **overrides}


def _stored(path: Path) -> dict[str, Any]:
    return checkpoints.read_json(path / "generation_config.json")


def _sampling_params(generation: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        ours: generation[theirs]
        for theirs, ours in _SAMPLING_NAMES.items()
        if generation.get(theirs) is not None
    }
    if generation.get("max_tokens") is not None:
        found["max_tokens"] = generation["max_tokens"]
    return found
