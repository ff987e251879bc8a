"""What config.json says, for families whose rules are simple, without importing transformers.

Their classes take a second to import, and what they do for these families is to fill in defaults
and to rename a few fields. A file that leaves any doubt is theirs: `plain_config` declines it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Values = dict[str, Any]

_COMMON: Final[Values] = {
    "architectures": None,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "is_encoder_decoder": False,
    "pad_token_id": None,
    "rms_norm_eps": 1e-6,
    "rope_parameters": None,
    "tie_word_embeddings": False,
    "use_cache": True,
}
# Sizes: a file that does not state them is not read here, so that no default can be out of date.
_SIZES: Final = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)
_QWEN: Final[Values] = {**_COMMON, "use_sliding_window": False, "sliding_window": 4096}
_LAYERED: Final[Values] = {**_QWEN, "max_window_layers": 28, "layer_types": None}
# Fields of each family and their values where config.json has none.
_FAMILIES: Final[Mapping[str, Values]] = {
    "llama": {**_COMMON, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
    "qwen2": _LAYERED,
    "qwen3": {**_LAYERED, "attention_bias": False},
    "qwen3_moe": {
        **_QWEN,
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    },
}
# Fields that have to be in the file, besides the sizes: their defaults differ between versions.
_STATED: Final[Mapping[str, tuple[str, ...]]] = {
    "llama": ("bos_token_id", "eos_token_id"),
    "qwen2": (),
    "qwen3": ("head_dim",),
    "qwen3_moe": (
        "head_dim",
        "moe_intermediate_size",
        "norm_topk_prob",
        "num_experts",
        "num_experts_per_tok",
    ),
}
# What checkpoints carry besides, and this engine does not read.
_CARRIED: Final = frozenset(
    {"_name_or_path", "model_type", "output_router_logits", "transformers_version"}
)
_RENAMED: Final = frozenset({"torch_dtype", "dtype", "rope_theta", "rope_scaling"})
_DTYPES: Final = frozenset({None, "float32", "bfloat16", "float16"})
_DEFAULT_THETA: Final = 10000.0
# Scalings that state everything themselves, and how a file may call them.
_ROPE_TYPES: Final = frozenset({"default", "linear", "dynamic", "llama3"})


class PlainConfig:
    """The configuration of a text model: attributes as those of transformers' class for it.

    What this does not know is asked of that class, which is imported then.
    """

    _values: Values
    _raw: Values

    def __init__(self, values: Values, raw: Values) -> None:
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_raw", raw)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying and pickling look for
            raise AttributeError(name)
        values = self._values
        if name == "dtype":
            import torch

            return None if values["dtype"] is None else vars(torch)[values["dtype"]]
        if name in values:
            return values[name]
        return getattr(self.full(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._values[name] = value

    def __reduce__(self) -> tuple[Any, ...]:
        return PlainConfig, (self._values, self._raw)

    def __deepcopy__(self, memo: dict[int, Any]) -> PlainConfig:
        return PlainConfig(copy.deepcopy(self._values, memo), self._raw)

    def to_dict(self) -> Values:
        return copy.deepcopy(self._values)

    def get_text_config(self, decoder: bool | None = None) -> PlainConfig:
        return self

    def full(self) -> PretrainedConfig:
        """As an object of transformers."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        merged = {**self._raw, **self._values}
        for name in ("torch_dtype", "rope_theta", "rope_scaling"):
            merged.pop(name, None)  # their new names are there
        config: PretrainedConfig = CONFIG_MAPPING[merged["model_type"]].from_dict(merged)
        return config


def plain_config(raw: Mapping[str, Any]) -> PlainConfig | None:
    """The configuration that config.json states; None if transformers should be asked."""
    family = raw.get("model_type")
    if family not in _FAMILIES:
        return None
    defaults = _FAMILIES[family]
    required = (*_SIZES, *_STATED[family])
    if not _is_plain(raw, defaults, required):
        return None
    values: Values = copy.deepcopy(defaults)
    values.update({name: raw[name] for name in (*required, *defaults, *_CARRIED) if name in raw})
    if "head_dim" in raw:
        values["head_dim"] = raw["head_dim"]
    elif family == "llama":
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    values["dtype"] = raw.get("dtype") or raw.get("torch_dtype")
    rope = _rope(raw, values["max_position_embeddings"])
    if rope is None:
        return None
    values["rope_parameters"] = rope
    if not values.get("use_sliding_window", True):
        values["sliding_window"] = None
    if "layer_types" in values:
        values["layer_types"] = values["layer_types"] or _layer_types(values)
        if not _are_layers(values["layer_types"], values["num_hidden_layers"]):
            return None
    return PlainConfig(values, dict(raw))


def _is_plain(raw: Mapping[str, Any], defaults: Values, required: tuple[str, ...]) -> bool:
    """Whether every field is one of those that these rules are about, with a value of its type."""
    known = {*required, *defaults, "head_dim"} & raw.keys()
    if not known | _CARRIED | _RENAMED >= raw.keys() or not known.issuperset(required):
        return False
    if not all(_fits(name, raw[name], defaults.get(name)) for name in known):
        return False
    if not {raw.get("dtype"), raw.get("torch_dtype")} <= _DTYPES:
        return False
    return raw["hidden_size"] % raw["num_attention_heads"] == 0 or "head_dim" in raw


def _fits(name: str, value: Any, default: Any) -> bool:
    if name in _SIZES or name in ("head_dim", "moe_intermediate_size") or "num_experts" in name:
        return _is_size(value)
    if name == "sliding_window":
        return value is None or _is_size(value)
    if name == "eos_token_id" and isinstance(value, list):
        return all(type(token_id) is int for token_id in value)
    if name.endswith("_token_id"):
        return value is None or type(value) is int
    if name == "architectures":
        return isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)
    if name in ("rope_parameters", "layer_types"):
        return True  # looked at where they are read
    if name == "norm_topk_prob":
        return type(value) is bool
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _rope(raw: Mapping[str, Any], max_positions: int) -> Values | None:
    """`rope_parameters` in the form of transformers 5; None for what is not understood here."""
    found = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(found, dict) or any(isinstance(v, dict | list) for v in found.values()):
        return None
    rope = dict(found)
    rope.setdefault("rope_theta", raw.get("rope_theta", _DEFAULT_THETA))
    rope.setdefault("rope_type", rope.get("type", "default"))
    if rope["rope_type"] not in _ROPE_TYPES or type(rope["rope_theta"]) not in (int, float):
        return None
    if "partial_rotary_factor" in rope:
        return None
    if rope["rope_type"] == "llama3":
        rope.setdefault("original_max_position_embeddings", max_positions)
    if rope["rope_type"] != "default" and not isinstance(rope.get("factor"), int | float):
        return None
    return rope


def _layer_types(values: Values) -> list[str]:
    """Windows are looked back on by the upper layers only, if by any."""
    count: int = values["num_hidden_layers"]
    num_full = count if values["sliding_window"] is None else values["max_window_layers"]
    return ["full_attention" if i < num_full else "sliding_attention" for i in range(count)]


def _are_layers(kinds: Any, count: int) -> bool:
    return (
        isinstance(kinds, list)
        and len(kinds) == count
        and {"full_attention", "sliding_attention"}.issuperset(kinds)
    )
