"""Environment variables of profilers and logs of single steps; vllm/envs.py reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vllm.variable import BOOLEAN, Variable, boolean

STEP_TOPICS: Final = ("steps", "fwd", "defrag")


def _topics(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        found = {word.strip().lower() for word in text.split(",") if word.strip()}
        if not found <= set(words):
            raise ValueError(text)
        return ",".join(word for word in words if word in found)

    return parse


PROFILING_VARIABLES: Final[tuple[Variable, ...]] = (
    Variable(
        "VLLM_TORCH_PROFILER_DIR",
        "",
        str,
        "a directory",
        "Directory for traces of the torch profiler, which POST /start_profile and "
        "LLM.start_profile() start; unset: these are refused.",
    ),
    Variable(
        "VLLM_TORCH_PROFILER_RECORD_SHAPES",
        False,
        boolean,
        BOOLEAN,
        "Torch profiler: record the shapes of the arguments of ops.",
    ),
    Variable(
        "VLLM_TORCH_PROFILER_WITH_PROFILE_MEMORY",
        False,
        boolean,
        BOOLEAN,
        "Torch profiler: record allocations.",
    ),
    Variable(
        "VLLM_TORCH_PROFILER_WITH_STACK",
        True,
        boolean,
        BOOLEAN,
        "Torch profiler: record calls of Python functions.",
    ),
    Variable(
        "VLLM_TORCH_PROFILER_WITH_FLOPS",
        False,
        boolean,
        BOOLEAN,
        "Torch profiler: estimate the operations of matrix products and convolutions.",
    ),
    Variable(
        "VLLM_TORCH_PROFILER_USE_GZIP",
        True,
        boolean,
        BOOLEAN,
        "Torch profiler: compress the traces.",
    ),
    Variable(
        "VLLM_PROFILER_ENABLED",
        False,
        boolean,
        BOOLEAN,
        "Write a timeline of steps, launches and queues for Perfetto: a file per process, in "
        "VLLM_TORCH_PROFILER_DIR or else the current directory.",
    ),
    Variable(
        "VLLM_DEBUG",
        "",
        _topics(*STEP_TOPICS),
        "a list of " + ", ".join(STEP_TOPICS),
        "Log a line per step (steps), per launch of the model (fwd), and whenever blocks of the KV "
        "cache are moved (defrag; on HPU with VLLM_CONTIGUOUS_PA=1).",
    ),
    Variable(
        "VLLM_HPU_LOG_STEP_GRAPH_COMPILATION",
        False,
        boolean,
        BOOLEAN,
        "HPU: log the steps in which graphs were compiled, with their launches.",
    ),
    Variable(
        "VLLM_HPU_LOG_STEP_GRAPH_COMPILATION_ALL",
        False,
        boolean,
        BOOLEAN,
        "HPU: the same of every step, also where there were none.",
    ),
    Variable(
        "VLLM_HPU_LOG_STEP_CPU_FALLBACKS",
        False,
        boolean,
        BOOLEAN,
        "HPU: log the steps in which ops fell back to the CPU, with their launches.",
    ),
    Variable(
        "VLLM_HPU_LOG_STEP_CPU_FALLBACKS_ALL",
        False,
        boolean,
        BOOLEAN,
        "HPU: the same of every step, also where there were none.",
    ),
)
