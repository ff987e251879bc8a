"""The op table: every device operation that layers, attention and sampling ask for by name.

Importing this package registers all references; `resolve(platform.ops())` gives the table to use.
"""

from vllm.ops import activation, attention, cache, moe, norm, rotary, sampling
from vllm.ops.registry import REFERENCES, Ops, op, resolve

__all__ = [
    "REFERENCES",
    "Ops",
    "activation",
    "attention",
    "cache",
    "moe",
    "norm",
    "op",
    "resolve",
    "rotary",
    "sampling",
]
