"""Names of ways in which tokens reach experts of other ranks, and the variable that gives one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vllm.variable import Variable, one_of

GATHER, EXCHANGE, BY_SHAPE = "gather", "exchange", "by shape"

# vLLM's names, and which of the two ways each asks for here.
ALL2ALL_BACKENDS: Final[Mapping[str, str]] = {
    "allgather_reducescatter": GATHER,
    "naive": GATHER,
    "pplx": EXCHANGE,
    "deepep_high_throughput": EXCHANGE,
    "deepep_low_latency": EXCHANGE,
    "deepep_v2": EXCHANGE,
    "mori_high_throughput": EXCHANGE,
    "mori_low_latency": EXCHANGE,
    "moonep": EXCHANGE,
    "nixl_ep": EXCHANGE,
    "flashinfer_nvlink_one_sided": EXCHANGE,
    "flashinfer_nvlink_two_sided": EXCHANGE,
    "flashinfer_all2allv": EXCHANGE,
}

EXPERT_VARIABLES: Final[tuple[Variable, ...]] = (
    Variable(
        "VLLM_ALL2ALL_BACKEND",
        "",
        one_of(*ALL2ALL_BACKENDS),
        "a name that --all2all-backend takes",
        "How tokens reach experts of other copies of the model. --all2all-backend wins over it.",
    ),
)
