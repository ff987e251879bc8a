"""What a model's config says of rotary embedding, in one form whatever wrote the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RopeParameters:
    """Rotary embedding of one kind of layer.

    `scaling` holds the fields of the scaling type `kind` alone, by their names in config files.
    """

    kind: str
    theta: float
    rotary_dim: int  # leading dimensions of a head that are rotated
    max_positions: int  # what the model's config states, scaling included
    scaling: Mapping[str, Any]

    @classmethod
    def from_config(cls, hf_config: Any, head_dim: int) -> RopeParameters:
        """From `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (before)."""
        facts = hf_config.to_dict()
        found = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
        if any(isinstance(value, Mapping) for value in found.values()):
            raise ConfigError(
                "this model's config has rope_parameters per layer type, which its native "
                "implementation here does not read. Use --model-impl transformers."
            )
        scaling = dict(found)
        legacy_kind = scaling.pop("type", None)
        kind = scaling.pop("rope_type", None) or legacy_kind or "default"
        theta = scaling.pop("rope_theta", None) or facts.get("rope_theta") or 10000.0
        share = scaling.pop("partial_rotary_factor", None) or facts.get("partial_rotary_factor")
        # Phi-3 style configs keep the original length outside, and mean it.
        original = facts.get("original_max_position_embeddings")
        if original is not None:
            scaling["original_max_position_embeddings"] = original
        return cls(
            kind={"su": "longrope"}.get(kind, kind),
            theta=float(theta),
            rotary_dim=int(head_dim * (share or 1.0)),
            max_positions=int(facts["max_position_embeddings"]),
            scaling=scaling,
        )

    def number(self, name: str, default: float | None = None) -> float:
        """Scaling field `name`. Raises ConfigError if it is missing and has no default."""
        value = self.scaling.get(name)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(
                f"rope type {self.kind!r} needs the field {name!r} in the model config's "
                f"rope_parameters, which has only {sorted(self.scaling)}. Add it to config.json "
                "or set it with --hf-overrides."
            )
        return float(value)

    @property
    def original_positions(self) -> float:
        """Positions the model was trained on before its context was extended."""
        return self.number("original_max_position_embeddings", float(self.max_positions))
