"""Which class runs the configured model."""

from __future__ import annotations

from vllm.config.model import ModelConfig
from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.models.interfaces import Model
from vllm.models.registry import ModelRegistry

logger = init_logger(__name__)


def resolve_model(config: ModelConfig) -> type[Model]:
    """The class to run, as `--model-impl` asks.

    Raises ConfigError if it asks for ours and there is none.
    """
    architecture = config.architecture
    if config.model_impl == "transformers":
        return ModelRegistry.fallback()
    found = ModelRegistry.native(architecture)
    if found is not None:
        return found
    if config.model_impl == "vllm":
        raise ConfigError(
            f"--model-impl vllm: there is no own implementation of {architecture!r}. Available: "
            f"{', '.join(ModelRegistry.get_supported_archs())}. Use --model-impl auto to run it "
            "through transformers."
        )
    logger.info("%s has no implementation of ours: running it through transformers", architecture)
    return ModelRegistry.fallback()
