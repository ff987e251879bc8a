"""Compilations with their time, and recipes kept on disk (PT_HPU_RECIPE_CACHE_CONFIG).

A recipe on disk is an empty promise: a file whose name is the key. What it saves is the time and
the count of a compilation.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hpu_emulator import _C, recipes
from hpu_emulator.settings import Settings

_ON = {"1", "true", "yes", "on", "y", "t"}
# What a file of a real recipe may take, for the limit in MB: a decoder layer's is of this order.
RECIPE_BYTES = 1 << 20

compiled: list[tuple[str, float]] = []  # name of the recipe, microseconds
on_compiled: list[Callable[[], None]] = []
_num_loaded = 0


def num_loaded() -> int:
    """Recipes that were found on disk."""
    return _num_loaded


class RecipeDirectory:
    """Keys of recipes in a directory, shared by processes; the oldest leave first."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_files = max_bytes // RECIPE_BYTES
        path.mkdir(parents=True, exist_ok=True)

    def has(self, key: str) -> bool:
        global _num_loaded
        found = (self._path / key).exists()
        _num_loaded += found
        return found

    def add(self, key: str) -> None:
        if self._max_files == 0:
            return
        (self._path / key).touch()
        files = sorted(self._path.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        for file in files[: max(0, len(files) - self._max_files)]:
            file.unlink(missing_ok=True)


def install(settings: Settings) -> None:
    """Once per process, before the first op. Raises ValueError for a configuration in error."""
    compile_s = _number("HPU_EMULATOR_COMPILE_MS") / 1000
    directory = _configured(settings)
    if directory is not None:
        recipes.add_store(directory.has)

    def listener(made: recipes.Compilation) -> None:
        if compile_s:
            time.sleep(compile_s)
        compiled.append((f"{made.mode}_{made.recipe}_{made.name()}", compile_s * 1e6))
        if directory is not None:
            directory.add(made.key)
        for callback in on_compiled:
            callback()

    recipes.add_listener(listener)
    _C.set_launch_latency(_number("HPU_EMULATOR_LAUNCH_US"))


def _number(name: str) -> float:
    text = os.environ.get(name, "").strip()
    try:
        value = float(text) if text else 0.0
    except ValueError:
        value = -1.0
    if value < 0:
        raise ValueError(f"{name}={text}: not a duration")
    return value


def _configured(settings: Settings) -> RecipeDirectory | None:
    """PT_HPU_RECIPE_CACHE_CONFIG=path,delete on start,MB[,on NFS]."""
    text = os.environ.get("PT_HPU_RECIPE_CACHE_CONFIG", "").strip()
    if not text:
        return None
    path, delete, size, *_ = [*(part.strip() for part in text.split(",")), "", ""][:4]
    if text.count(",") > 3 or not (size or "1024").isdigit():
        raise ValueError(
            f"PT_HPU_RECIPE_CACHE_CONFIG={text}: path, true to delete it first, size in MB and, "
            "optionally, whether it is on NFS"
        )
    if not path:
        return None
    if delete.lower() in _ON:
        shutil.rmtree(path, ignore_errors=True)
    return RecipeDirectory(Path(path) / _stamp(settings), int(size or 1024) << 20)


def _version() -> str:
    try:
        return importlib.metadata.version("habana-torch-plugin")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _stamp(settings: Settings) -> str:
    """Recipes of other software, devices or numbers of ranks are of no use."""
    parts = [settings.generation.name, os.environ.get("WORLD_SIZE", "1")]
    if os.environ.get("PT_RECIPE_CACHE_IGNORE_VERSION", "").lower() not in _ON:
        parts += [torch.__version__, _version()]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
