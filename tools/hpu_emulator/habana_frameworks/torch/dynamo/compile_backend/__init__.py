"""The backend "hpu_backend" of torch.compile."""

from __future__ import annotations

import sys

from hpu_emulator.runtime import SETTINGS

NAME = "hpu_backend"


def register() -> None:
    """Makes the backend known where Dynamo is loaded already: elsewhere it finds the entry point
    of this distribution by itself. In lazy mode Dynamo is switched off."""
    dynamo = sys.modules.get("torch._dynamo")
    if SETTINGS.is_lazy:
        _disable(dynamo)
    elif dynamo is not None:
        from habana_frameworks.torch.dynamo.compile_backend.backends import hpu_backend

        if NAME not in dynamo.list_backends(exclude_tags=()):
            dynamo.register_backend(hpu_backend, name=NAME)


def _disable(dynamo: object) -> None:
    import os

    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    if dynamo is not None:
        import torch._dynamo.config

        torch._dynamo.config.disable = True
