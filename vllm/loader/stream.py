"""Yields the tensors of a checkpoint, one at a time, from whatever files it consists of."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from vllm.errors import LoadError
from vllm.loader.pages import MappedPages

Named = tuple[str, Tensor]
SUFFIXES = {"safetensors": (".safetensors",), "pt": (".bin", ".pt", ".pth")}
INDEXES = {"safetensors": "model.safetensors.index.json", "pt": "pytorch_model.bin.index.json"}
# In files with those suffixes that are not weights.
NOT_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "*.tiktoken.*")
REMEDY = "The file is incomplete or damaged: download or copy it again"


def checkpoint_files(root: Path, load_format: str, ignore: Sequence[str]) -> list[Path]:
    """The weight files to read, all of one format.

    Raises LoadError if there are none or no directory, or if an index names one that is missing.
    """
    if not root.is_dir():
        raise LoadError(f"{root} is not a directory. Give a directory that holds a checkpoint.")
    formats = ("safetensors", "pt") if load_format == "auto" else (load_format,)
    for name in formats:
        found = _indexed(root, INDEXES[name]) or _listed(root, name, ignore)
        if found:
            return found
    suffixes = ", ".join(suffix for name in formats for suffix in SUFFIXES[name])
    raise LoadError(
        f"no weights in {root}: expected files ending in {suffixes} (--load-format {load_format}). "
        "Give a directory that holds a checkpoint, or use --load-format dummy for random weights."
    )


def _indexed(root: Path, name: str) -> list[Path]:
    index = root / name
    if not index.exists():
        return []
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise LoadError(f"cannot read {index}: {error!r}. {REMEDY}.") from error
    missing = [name for name in names if not (root / name).exists()]
    if missing:
        raise LoadError(
            f"{index} names files that are not there: {', '.join(missing)}. "
            f"Complete the checkpoint in {root}."
        )
    return [root / name for name in names]


def _owners(files: Sequence[Path]) -> dict[str, str]:
    """The file of each tensor, where an index says so; `files` are of one format."""
    for name, suffixes in SUFFIXES.items():
        if files and files[0].suffix in suffixes:
            index = files[0].parent / INDEXES[name]
            if index.exists():  # then it is what gave the files
                owners: dict[str, str] = json.loads(index.read_text())["weight_map"]
                return owners
    return {}


def _listed(root: Path, name: str, ignore: Sequence[str]) -> list[Path]:
    unwanted = (*ignore, *NOT_WEIGHTS)
    files = [
        path
        for path in sorted(root.iterdir())
        if path.suffix in SUFFIXES[name] and not any(fnmatch(path.name, p) for p in unwanted)
    ]
    # Some repositories hold the same weights a second time, in the layout of their authors.
    plain = [path for path in files if not path.name.startswith("consolidated")]
    return plain or files


def tensors_named(files: Sequence[Path], names: set[str]) -> dict[str, Tensor]:
    """Tensors of these names, as far as there are any, without reading their data.

    It is mapped; only pickles of old, which cannot be, are read. Raises LoadError.
    """
    found: dict[str, Tensor] = {}
    for path in files:
        if path.suffix == ".safetensors":
            with _opened(path) as file:
                found |= {name: file.get_tensor(name) for name in names.intersection(file.keys())}
        else:
            found |= {name: tensor for name, tensor in _pickled(path) if name in names}
    return found


def tensor_names(files: Sequence[Path]) -> set[str]:
    """The names of all tensors. Raises LoadError."""
    names: set[str] = set()
    for path in files:
        if path.suffix == ".safetensors":
            with _opened(path) as file:
                names.update(file.keys())
        else:
            names.update(name for name, _ in _pickled(path))
    return names


def stream(files: Sequence[Path], progress: bool) -> Iterator[Named]:
    """Tensors of all `files`, on the host, valid until the next one is asked for.

    Data is mapped, not read, where the format allows. A tensor that several files hold comes from
    the one that the index names. Raises LoadError naming a broken file.
    """
    owners = _owners(files)
    total = sum(path.stat().st_size for path in files)
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="Loading weights", disable=not progress
    ) as bar:
        for number, path in enumerate(files, 1):
            bar.set_postfix_str(f"file {number} of {len(files)}")
            tensors = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
            done = 0
            for name, tensor in tensors:
                if owners.get(name, path.name) == path.name:
                    yield name, tensor
                done += tensor.nbytes
                bar.update(tensor.nbytes)
            bar.update(max(path.stat().st_size - done, 0))


def _safetensors(path: Path) -> Iterator[Named]:
    with _opened(path) as file:
        pages: MappedPages | None = None
        for name in file.keys():  # noqa: SIM118 - not a mapping
            tensor = file.get_tensor(name)
            pages = pages or MappedPages(path)  # it is mapped with the first tensor
            yield name, tensor
            pages.drop(tensor)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise LoadError(f"cannot read {path}: {error}. {REMEDY}.") from error


def _pickled(path: Path) -> Iterator[Named]:
    try:
        # Old files are plain pickles, which cannot be mapped.
        state = torch.load(
            path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True
        )
    except pickle.UnpicklingError as error:
        raise LoadError(
            f"cannot read {path}: {error}. Only plain tensors are loaded from such files; convert "
            "the checkpoint to safetensors, or copy the file again if it is damaged."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise LoadError(f"cannot read {path}: {error}. {REMEDY}.") from error
    if not isinstance(state, dict):
        raise LoadError(f"{path} holds a {type(state).__name__}, not named tensors.")
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):
            yield name, tensor
