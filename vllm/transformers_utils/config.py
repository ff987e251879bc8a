"""What a checkpoint's directory says about its model: config.json and the files around it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch

from vllm.errors import ConfigError, LoadError
from vllm.logger import init_logger
from vllm.transformers_utils.plain_config import PlainConfig, plain_config
from vllm.utils.text import did_you_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = init_logger(__name__)

# How configs of different families call the most positions a model knows.
_LENGTH_KEYS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_target_positions",
)
# Scalings whose config already states the scaled length.
_ALREADY_SCALED: Final = frozenset({"default", "llama3", "longrope", "su", "mrope", "proportional"})
# Keys that are read from config.json although the loaded object does not show them.
_READ_ONCE: Final = frozenset({"rope_scaling", "rope_theta", "torch_dtype", "dtype", "head_dim"})
_SAFETENSORS_DTYPES: Final = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Largest header of a safetensors file that is believed; the format's own limit.
_MAX_HEADER_BYTES: Final = 100_000_000

Overrides = Mapping[str, Any] | Callable[["PretrainedConfig"], "PretrainedConfig"]
Config: TypeAlias = "PretrainedConfig | PlainConfig"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The facts of one checkpoint directory."""

    path: Path
    hf_config: Config  # of the text model
    architecture: str
    raw: Mapping[str, Any]  # config.json, overrides included


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none. Raises LoadError if it is broken."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} cannot be read: {error}") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise LoadError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise LoadError(f"{path} holds {type(value).__name__}, not an object")
    return value


def load_checkpoint(
    path: Path,
    *,
    config_path: Path | None = None,
    overrides: Overrides | None = None,
    trust_remote_code: bool = False,
    code_revision: str = "",
) -> Checkpoint:
    """Read the model configuration of a directory.

    Raises LoadError if it cannot be read and ConfigError if it may not be or cannot be used.
    """
    source = config_path or path
    raw = read_json(source / "config.json")
    if not raw:
        raise LoadError(
            f"{source} has no config.json, so it is not a checkpoint. Give the directory that "
            "holds config.json and the weights."
        )
    plain = None if overrides else plain_config(raw)
    if plain is not None:
        return Checkpoint(path, plain, _architecture(plain, source), raw)
    changes = {} if overrides is None or callable(overrides) else _with_rope(overrides, raw)
    merged = {**raw, **changes}
    config = _build(source, merged, changes, trust_remote_code, code_revision)
    _warn_of_unknown(changes, raw, config)
    if overrides is not None and callable(overrides):
        from transformers import PretrainedConfig

        config = overrides(config)
        if not isinstance(config, PretrainedConfig):
            raise ConfigError(
                f"hf_overrides: the function returned {type(config).__name__}; it must return the "
                "config it was given, changed."
            )
    architecture = _architecture(config, source)
    return Checkpoint(path, config.get_text_config(decoder=True), architecture, merged)


def _with_rope(overrides: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` with the old keys for rope moved to where `raw` has the new one."""
    changes = dict(overrides)
    if "rope_parameters" in raw and not changes.get("rope_parameters"):
        scaling = dict(changes.pop("rope_scaling", None) or {})
        if "rope_theta" in changes:
            scaling["rope_theta"] = changes.pop("rope_theta")
        if scaling:
            changes["rope_parameters"] = {**(raw["rope_parameters"] or {}), **scaling}
    return changes


def _build(
    source: Path,
    merged: dict[str, Any],
    changes: Mapping[str, Any],
    trust_remote_code: bool,
    code_revision: str,
) -> PretrainedConfig:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = merged.get("model_type", "")
    try:
        if model_type in CONFIG_MAPPING:
            config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(merged)
            return config
        if "AutoConfig" not in merged.get("auto_map", {}):
            known = did_you_mean(model_type, CONFIG_MAPPING.keys())
            raise LoadError(
                f"{source / 'config.json'}: transformers knows no model_type {model_type!r}.{known}"
            )
        if not trust_remote_code:
            raise ConfigError(
                f"{source} brings Python code of its own. Read it, then allow it with "
                "--trust-remote-code."
            )
        revision = {"code_revision": code_revision} if code_revision else {}
        config = AutoConfig.from_pretrained(source, trust_remote_code=True, **revision)
        config.update(dict(changes))
        return config
    except (LoadError, ConfigError):
        raise
    except Exception as error:  # validators of transformers and remote code raise anything
        raise LoadError(f"{source / 'config.json'} cannot be used: {error}") from error


def _warn_of_unknown(
    changes: Mapping[str, Any], raw: Mapping[str, Any], config: PretrainedConfig
) -> None:
    if not changes:
        return
    defaults = type(config)().to_dict() if not raw.get("auto_map") else raw
    known = {*raw, *defaults, *_READ_ONCE}
    for name in changes:
        if name not in known:
            logger.warning(
                "--hf-overrides sets %r, which config.json does not have and %s does not name.%s",
                name,
                type(config).__name__,
                did_you_mean(name, known),
            )


def _architecture(config: Config, source: Path) -> str:
    if config.architectures:
        return str(config.architectures[0])
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    # A config saved without its model names none; its family's causal LM is what is meant.
    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if found is None:
        raise LoadError(
            f"{source / 'config.json'} names no architecture and model_type "
            f"{config.model_type!r} has no causal language model. Set "
            '--hf-overrides \'{"architectures": ["..."]}\'.'
        )
    return str(found if isinstance(found, str) else found[0])


def rope_of(config: Config) -> Mapping[str, Any]:
    """Rotary parameters shared by all layers; empty where layers differ or there are none."""
    rope = config.to_dict().get("rope_parameters") or {}
    return {} if any(isinstance(value, dict) for value in rope.values()) else rope


def longest_length(checkpoint: Checkpoint) -> int | None:
    """Positions the model was made for, None if its config does not say."""
    values = checkpoint.hf_config.to_dict()
    stated = [values[key] for key in _LENGTH_KEYS if isinstance(values.get(key), int)]
    if not stated:
        return None
    limit: int = min(stated)
    rope = rope_of(checkpoint.hf_config)
    kind = rope.get("rope_type", "default")
    if kind not in _ALREADY_SCALED:
        original = rope.get("original_max_position_embeddings") if kind == "yarn" else None
        limit = int((original or limit) * float(rope.get("factor") or 1.0))
    tokenizer_limit = read_json(checkpoint.path / "tokenizer_config.json").get("model_max_length")
    if isinstance(tokenizer_limit, int | float) and 0 < tokenizer_limit < limit:
        limit = int(tokenizer_limit)
    return limit


def window_of(checkpoint: Checkpoint) -> int | None:
    """Tokens the model's windowed layers look back on, None if it has none."""
    values = checkpoint.hf_config.to_dict()
    kinds = values.get("layer_types")
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    window = values.get("sliding_window")
    return int(window) if window else None


def has_learned_positions(checkpoint: Checkpoint) -> bool:
    """Whether positions beyond the stated length have no embedding at all."""
    values = checkpoint.hf_config.to_dict()
    return "rope_parameters" not in values and "n_positions" in values


def checkpoint_dtype(checkpoint: Checkpoint) -> torch.dtype | None:
    """The dtype the checkpoint names, else the one its weights have, else None."""
    named = checkpoint.hf_config.dtype
    if named is None:
        named = checkpoint.raw.get("dtype") or checkpoint.raw.get("torch_dtype")
    if isinstance(named, str):
        named = vars(torch).get(named.removeprefix("torch."))
    return named if isinstance(named, torch.dtype) else _dtype_of_weights(checkpoint.path)


def _dtype_of_weights(path: Path) -> torch.dtype | None:
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as stream:
            num_bytes = int.from_bytes(stream.read(8), "little")
            if not 0 < num_bytes < _MAX_HEADER_BYTES:
                return None  # broken: loading will say how
            try:
                header = json.loads(stream.read(num_bytes))
            except ValueError:
                return None
        for name, entry in header.items():
            found = name != "__metadata__" and _SAFETENSORS_DTYPES.get(entry.get("dtype"))
            if found:
                return found
    return None
