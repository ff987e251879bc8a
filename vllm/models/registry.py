"""Which class implements an architecture. Modules are imported when one of theirs is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vllm.logger import init_logger

if TYPE_CHECKING:
    from vllm.models.interfaces import Model

logger = init_logger(__name__)

M = TypeVar("M", bound="type[Model]")

FALLBACK = "vllm.models.transformers_fallback:TransformersModel"

# Architecture, as `config.json` names it -> module here that registers it.
_MODULES: dict[str, str] = {
    "DeepseekV2ForCausalLM": "deepseek",
    "DeepseekV3ForCausalLM": "deepseek",
    "GPTBigCodeForCausalLM": "gpt_bigcode",
    "Gemma2ForCausalLM": "gemma2",
    "GraniteForCausalLM": "granite",
    "LLaMAForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
# Filled by `register` on import, and by users: a class or "module:Class".
_CLASSES: dict[str, type[Model] | str] = {}


def register(*architectures: str) -> Callable[[M], M]:
    """Class decorator: the class implements `architectures`, which `_MODULES` lists."""

    def add(model: M) -> M:
        for name in architectures:
            assert name in _MODULES, f"{name} is not in the table of vllm.models.registry"
            _CLASSES[name] = model
        return model

    return add


def _import(path: str) -> type[Model]:
    module, _, name = path.partition(":")
    found: type[Model] = vars(importlib.import_module(module))[name]
    return found


class ModelRegistry:
    """The public interface: what is supported, and how to add to it."""

    @staticmethod
    def get_supported_archs() -> list[str]:
        """Architectures implemented here; others run through transformers."""
        return sorted({*_MODULES, *_CLASSES})

    @staticmethod
    def register_model(architecture: str, model: type[Model] | str) -> None:
        """Serve `architecture` with a class, or with "module:Class", imported when needed.

        Replaces an implementation of the same name. The class must be a
        vllm.models.interfaces.Model.
        """
        if isinstance(model, str) and model.count(":") != 1:
            raise ValueError(f"expected 'module:Class', got {model!r}")
        if architecture in _MODULES or architecture in _CLASSES:
            logger.warning("architecture %s now means %s", architecture, model)
        _CLASSES[architecture] = model

    @staticmethod
    def native(architecture: str) -> type[Model] | None:
        """Our class for `architecture`, None if there is none."""
        if architecture not in _CLASSES and architecture in _MODULES:
            importlib.import_module(f"vllm.models.{_MODULES[architecture]}")
        found = _CLASSES.get(architecture)
        return _import(found) if isinstance(found, str) else found

    @staticmethod
    def fallback() -> type[Model]:
        """The class that runs any architecture that transformers has."""
        return _import(FALLBACK)
