"""Which environment variables of the engine the ranks on other machines get.

Gaudi's software reads its variables when it is imported, so they are complete before the process of
a rank begins. What belongs to one machine stays there, and what only the other has set it keeps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vllm.envs import Environment
from vllm.errors import ConfigError

_PREFIXES: Final = (
    "VLLM_",
    # Gaudi: the bridge, the driver and the graph compiler, their logs, HCCL.
    "PT_",
    "HABANA_",
    "HLS_",
    "HCCL_",
    "HCL_",
    "LOG_LEVEL_",
    "ENABLE_",
    "GRAPH_",
    "FUSER_",
    "LOWERING_",
    "RDMAV_",
    "FI_",
    # Intel Neural Compressor.
    "QUANT_",
    "INC_",
    "RUNTIME_SCALE_",
    # Libraries.
    "HF_",
    "HUGGING_FACE_",
    "TRANSFORMERS_",
    "TOKENIZERS_",
    "SAFETENSORS_",
    "TORCH",
    "GLOO_",
    "NCCL_",
    "UCX_",
    "LMCACHE_",
    "FLASH_ATTENTION_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OTEL_",
    "MALLOC_",
)
_NAMES: Final = frozenset(
    {"PYTHONHASHSEED", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "TQDM_DISABLE"}
)
# Of one machine or one process.
_STAYS: Final = frozenset(
    {
        "VLLM_HOST_IP",
        "VLLM_API_KEY",
        "HABANA_VISIBLE_MODULES",
        "HABANA_VISIBLE_DEVICES",
        "HLS_MODULE_ID",
    }
)
EXCLUDED: Final = "ray_non_carry_over_env_vars.json"


def travelling(environ: Mapping[str, str]) -> dict[str, str]:
    """Those of `environ` that go to every machine. Raises ConfigError."""
    env = Environment(environ)
    prefixes = (*_PREFIXES, *_words(env.VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY))
    names = _NAMES | set(_words(env.VLLM_RAY_EXTRA_ENV_VARS_TO_COPY))
    stays = _STAYS | _excluded(env)
    return {
        name: value
        for name, value in environ.items()
        if (name in names or name.startswith(prefixes)) and name not in stays
    }


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _excluded(env: Environment) -> set[str]:
    """Names that the user's file keeps from travelling."""
    root = env.VLLM_CONFIG_ROOT or Path.home() / ".config" / "vllm"
    path = Path(root) / EXCLUDED
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: is not JSON ({error}). {_FORM}") from None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"{path}: {_FORM}")
    return set(found)


_FORM: Final = 'It must be a list of names of variables, such as ["HF_TOKEN"].'
