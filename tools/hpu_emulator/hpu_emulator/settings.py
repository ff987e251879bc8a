"""What the environment says about the emulated device, read once at import."""

from __future__ import annotations

import os
from dataclasses import dataclass

GIB = 1 << 30
SWITCHES = ("no_sync", "no_compile", "index", "dtype")


@dataclass(frozen=True, slots=True)
class Generation:
    name: str  # as torch.hpu.get_device_name() says it
    number: int
    memory_bytes: int
    fp8_max: float  # largest finite float8_e4m3


GENERATIONS = {
    "gaudi2": Generation("GAUDI2", 2, int(94.62 * GIB), 240.0),
    "gaudi3": Generation("GAUDI3", 3, 126 * GIB, 448.0),
}


@dataclass(frozen=True, slots=True)
class Settings:
    is_lazy: bool
    generation: Generation
    memory_bytes: int
    num_modules: int
    visible_modules: tuple[int, ...]
    strict: frozenset[str]
    max_ops_per_graph: int
    compile_only: bool
    int64_support: bool
    negative_indices: bool
    tanh_gelu: bool
    place_on_cpu: str


def read() -> Settings:
    """Raises ValueError, naming the variable, for a value that means nothing."""
    is_lazy = os.environ.get("PT_HPU_LAZY_MODE", "0") != "0"
    generation = _generation()
    num_modules = _integer("HPU_EMULATOR_DEVICES", 8)
    return Settings(
        is_lazy=is_lazy,
        generation=generation,
        memory_bytes=_bytes("HPU_EMULATOR_MEMORY", generation.memory_bytes),
        num_modules=num_modules,
        visible_modules=visible_modules(num_modules),
        strict=_strict(),
        max_ops_per_graph=_integer("PT_HPU_MAX_COMPOUND_OP_SIZE", (1 << 63) - 1),
        compile_only=_flag("PT_COMPILE_ONLY_MODE", False),
        int64_support=_flag("PT_ENABLE_INT64_SUPPORT", not is_lazy),
        negative_indices=_flag("PT_HPU_ENABLE_NEGATIVE_INDEXING", False),
        tanh_gelu=_flag("PT_HPU_FORCE_TANH_FOR_GELU", True),
        place_on_cpu=os.environ.get("PT_HPU_PLACE_ON_CPU", ""),
    )


def visible_modules(num_modules: int) -> tuple[int, ...]:
    """HABANA_VISIBLE_MODULES, or all that exist."""
    text = os.environ.get("HABANA_VISIBLE_MODULES", "").strip()
    if not text:
        return tuple(range(num_modules))
    try:
        chosen = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"HABANA_VISIBLE_MODULES={text}: a comma-separated list of ids") from None
    return tuple(module for module in chosen if module < num_modules)


def _generation() -> Generation:
    name = os.environ.get("HPU_EMULATOR_GENERATION", "gaudi2").lower()
    if name not in GENERATIONS:
        raise ValueError(f"HPU_EMULATOR_GENERATION={name}: one of {', '.join(GENERATIONS)}")
    return GENERATIONS[name]


def _strict() -> frozenset[str]:
    text = os.environ.get("HPU_EMULATOR_STRICT", "")
    chosen = frozenset(part.strip() for part in text.split(",") if part.strip())
    if unknown := chosen - set(SWITCHES):
        raise ValueError(
            f"HPU_EMULATOR_STRICT: {', '.join(sorted(unknown))} is not one of {', '.join(SWITCHES)}"
        )
    return chosen


def _flag(name: str, default: bool) -> bool:
    text = os.environ.get(name, "").strip().lower()
    return default if not text else text in {"1", "true", "yes", "on", "y", "t"}


def _integer(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    try:
        return int(text) if text else default
    except ValueError:
        raise ValueError(f"{name}={text}: not an integer") from None


def _bytes(name: str, default: int) -> int:
    """An integer, or a number with KiB, MiB or GiB after it."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    for unit, scale in (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", GIB)):
        if text.endswith(unit):
            try:
                return int(float(text.removesuffix(unit)) * scale)
            except ValueError:
                break
    if not text.isdigit():
        raise ValueError(f"{name}={text}: bytes, or a number followed by KiB, MiB or GiB")
    return int(text)
