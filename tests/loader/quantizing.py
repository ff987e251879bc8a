"""Quantizes a checkpoint to 8 bits per channel, and writes beside it what its values are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE = "model.safetensors"
TABLES = ("embed_tokens.weight", "wte.weight", "wpe.weight")
FORMATS = {"int": "pack-quantized", "float": "naive-quantized"}


def quantized(path: Path, out: Path, kind: str, ignore: tuple[str, ...] = ("lm_head",)) -> Path:
    """Every projection and expert of the checkpoint at `path` in `kind`, int or float."""
    shutil.copytree(path, out)
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(path / FILE).items():
        module = name.removesuffix(".weight")
        if tensor.dim() != 2 or name.endswith(TABLES) or module in ignore:
            tensors[name] = tensor
            continue
        values, scale = encoded(tensor, kind)
        tensors[f"{module}.weight_scale"] = scale
        if kind == "float":
            tensors[f"{module}.weight"] = values
        else:
            tensors[f"{module}.weight_packed"] = packed(values)
            tensors[f"{module}.weight_shape"] = torch.tensor(tensor.shape)
    save_file(tensors, out / FILE)
    config = json.loads((out / "config.json").read_text())
    weights = {"num_bits": 8, "type": kind, "strategy": "channel", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": FORMATS[kind],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}
        },
        "ignore": list(ignore),
    }
    (out / "config.json").write_text(json.dumps(config))
    return out


def rounded(path: Path, out: Path, kind: str, ignore: tuple[str, ...] = ("lm_head",)) -> Path:
    """The same values in a checkpoint that is not quantized."""
    shutil.copytree(path, out)
    tensors = load_file(path / FILE)
    for name, tensor in tensors.items():
        if (
            tensor.dim() == 2
            and not name.endswith(TABLES)
            and name.removesuffix(".weight") not in ignore
        ):
            values, scale = encoded(tensor, kind)
            tensors[name] = values.float() * scale
    save_file(tensors, out / FILE)
    return out


def encoded(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """[out, in] -> values of 8 bits and scales [out, 1] in float32."""
    largest = 127.0 if kind == "int" else torch.finfo(torch.float8_e4m3fn).max
    scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-8) / largest
    scaled = weight.float() / scale
    values = scaled.round().to(torch.int8) if kind == "int" else scaled.to(torch.float8_e4m3fn)
    return values, scale


def packed(values: Tensor) -> Tensor:
    """[out, in] int8 -> [out, in / 4] int32: four inputs in one, the first lowest, plus 128."""
    fours = (values.short() + 128).to(torch.uint8).view(len(values), -1, 4)
    return fours.contiguous().view(torch.int32).squeeze(-1)
