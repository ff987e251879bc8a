"""Rotary position embedding: frequencies by scaling type, and the tables layers rotate with."""

from vllm.layers.rope.parameters import RopeParameters
from vllm.layers.rope.table import NoRope, Rope, Rotary

__all__ = ["NoRope", "Rope", "RopeParameters", "Rotary"]
