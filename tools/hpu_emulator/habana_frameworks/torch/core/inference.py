"""What is set before and after a model goes to the device for inference."""

from __future__ import annotations

import logging
import os

import torch
from habana_frameworks.torch.hpu import switches
from hpu_emulator import _C
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

logger = logging.getLogger(__name__)


def hpu_set_env(model: nn.Module | None = None) -> nn.Module | None:
    """Inference mode and 2-D products on; convolutions of `model` absorb their batch norms."""
    if os.environ.get("PT_HPU_WEIGHT_SHARING", "1") != "0":
        logger.warning(
            "PT_HPU_WEIGHT_SHARING is on: weights are kept on the host too; 0 turns it off"
        )
    switches.enable_inference_mode()
    switches.enable_matmul3d_2d_reshape()
    if model is not None:
        _fuse(model)
    return model


def hpu_set_inference_env(model: nn.Module | None = None) -> nn.Module | None:
    return hpu_set_env(model)


def hpu_inference_set_env() -> None:
    hpu_set_env()


def hpu_reset_env() -> None:
    switches.disable_inference_mode()
    switches.disable_matmul3d_2d_reshape()
    _C.unmark_constants()


def hpu_teardown_inference_env() -> None:
    hpu_reset_env()


def hpu_initialize(
    model: nn.Module | None = None,
    mark_only_scales_as_const: bool = False,
    optimizer: object = None,
    args: object = None,
) -> None:
    """Lazy: the values of parameters become part of the recipes that use them.

    Call it when the model is on the device. With `mark_only_scales_as_const`, only of parameters
    and buffers whose name contains "scale".
    """
    if optimizer is not None:
        raise NotImplementedError("training is not emulated: hpu_initialize takes no optimizer")
    if model is None or not _C.is_lazy():
        return
    _C.flush()
    tensors = dict(model.named_parameters())
    if mark_only_scales_as_const:
        named = {**tensors, **dict(model.named_buffers())}
        tensors = {name: tensor for name, tensor in named.items() if "scale" in name}
    for tensor in tensors.values():
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "hpu":
            _C.mark_constant(tensor)


def hpu_inference_initialize(
    model: nn.Module | None = None,
    mark_only_scales_as_const: bool = False,
    optimizer: object = None,
    args: object = None,
    mark_non_scales: bool = True,
) -> None:
    hpu_initialize(model, mark_only_scales_as_const or not mark_non_scales, optimizer, args)


def _fuse(model: nn.Module) -> None:
    """In modules in which a convolution is directly followed by its batch norm."""
    for module in model.modules():
        if not isinstance(module, nn.Sequential) or module.training:
            continue
        for name, following in zip(list(module._modules), list(module._modules)[1:], strict=False):
            conv, norm = module._modules[name], module._modules[following]
            if isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d) and isinstance(
                norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
            ):
                module._modules[name] = fuse_conv_bn_eval(conv, norm)
                module._modules[following] = nn.Identity()
