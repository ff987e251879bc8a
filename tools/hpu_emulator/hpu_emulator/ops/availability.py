"""Ops that the software does not have in every execution mode."""

from __future__ import annotations

from hpu_emulator.regions import in_compiled_region
from hpu_emulator.runtime import SETTINGS


def refuse_eager(op: str) -> None:
    """For ops of graphs: those of lazy mode and of compiled regions."""
    if not (SETTINGS.is_lazy or in_compiled_region()):
        raise RuntimeError(
            f"hpu::{op} is not available in eager mode: use PT_HPU_LAZY_MODE=1, or call it from a "
            "function that torch.compile(backend='hpu_backend') compiled"
        )


def refuse_uncompiled(op: str) -> None:
    """For ops of compiled regions only."""
    if not in_compiled_region():
        raise RuntimeError(
            f"hpu::{op} is available only in functions that torch.compile(backend='hpu_backend') "
            "compiled, with PT_HPU_LAZY_MODE=0"
        )
