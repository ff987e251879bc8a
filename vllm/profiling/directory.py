"""Where traces go."""

from __future__ import annotations

import os
from pathlib import Path

from vllm.envs import Environment
from vllm.errors import ConfigError


def trace_directory(env: Environment) -> Path | None:
    """That of VLLM_TORCH_PROFILER_DIR, made if it is not there. Raises ConfigError."""
    text: str = env.VLLM_TORCH_PROFILER_DIR
    if not text:
        return None
    if "://" in text:
        raise ConfigError(
            f"VLLM_TORCH_PROFILER_DIR={text}: traces are written to files of this machine. Name a "
            "directory."
        )
    directory = Path(text).expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"VLLM_TORCH_PROFILER_DIR={text}: {error.strerror or error}. Name a directory that can "
            "be written, or unset it."
        ) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(
            f"VLLM_TORCH_PROFILER_DIR={text}: not writable. Name a directory that is, or unset it."
        )
    return directory
