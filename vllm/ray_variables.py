"""Environment variables of engines whose ranks Ray places; vllm/envs.py reads them."""

from __future__ import annotations

from typing import Final

from vllm.variable import BOOLEAN, Variable, boolean, positive_number

_ONE_WAY: Final = (
    "Accepted without effect: plans reach the machines of a Ray cluster over connections of ours, "
    "and ranks exchange tensors over HCCL or gloo."
)

RAY_VARIABLES: Final[tuple[Variable, ...]] = (
    Variable(
        "VLLM_RAY_PER_WORKER_GPUS",
        1.0,
        positive_number,
        "a number above 0",
        "How much of HPU (1 only) or CPU the bundle of a rank has in a Ray cluster.",
    ),
    Variable(
        "VLLM_RAY_BUNDLE_INDICES",
        "",
        str,
        "numbers of bundles, one for each rank, separated by commas",
        "Which bundle of the placement group each rank takes, by rank. Unset: the first that fit, "
        "machine by machine.",
    ),
    Variable(
        "VLLM_RAY_DP_PLACEMENT_NODE_IPS",
        "",
        str,
        "addresses separated by commas",
        "Machines of a Ray cluster that may get copies of the model with --data-parallel-backend "
        "ray. Unset: all.",
    ),
    Variable(
        "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY",
        "",
        str,
        "names separated by commas",
        "Variables that the machines of a Ray cluster get, besides those of vLLM, Gaudi's "
        "software, INC, Hugging Face and the libraries of threads and networks.",
    ),
    Variable(
        "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY",
        "",
        str,
        "beginnings of names, separated by commas",
        "The same of all variables whose names begin so.",
    ),
    Variable(
        "VLLM_CONFIG_ROOT",
        "",
        str,
        "a directory",
        "Where ray_non_carry_over_env_vars.json may be, a list of variables that the machines of a "
        "Ray cluster do not get. Unset: ~/.config/vllm.",
    ),
    *(
        Variable(name, default, boolean, BOOLEAN, _ONE_WAY, has_effect=False)
        for name, default in (
            ("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", True),
            ("VLLM_USE_RAY_WRAPPED_PP_COMM", True),
            ("VLLM_USE_RAY_SPMD_WORKER", False),
            ("VLLM_USE_RAY_COMPILED_DAG", False),
            ("VLLM_USE_RAY_COMPILED_DAG_OVERLAP_COMM", False),
        )
    ),
    Variable(
        "VLLM_USE_RAY_COMPILED_DAG_CHANNEL_TYPE",
        "auto",
        str,
        "auto, nccl or shm",
        _ONE_WAY,
        has_effect=False,
    ),
)
