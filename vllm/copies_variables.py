"""Environment variables of programs that each have one copy of a model; vllm/envs.py reads them."""

from __future__ import annotations

from typing import Final

from vllm.variable import Variable, count, port, positive

COPIES_VARIABLES: Final[tuple[Variable, ...]] = (
    Variable(
        "VLLM_DP_SIZE",
        1,
        positive,
        "a whole number, 1 or more",
        "How many programs run the same model, each one copy of it: --data-parallel-size of all, "
        "where that is not given.",
    ),
    Variable(
        "VLLM_DP_RANK",
        0,
        count,
        "a whole number, 0 or more",
        "Which of VLLM_DP_SIZE programs this one is: its --data-parallel-rank.",
    ),
    Variable(
        "VLLM_DP_RANK_LOCAL",
        -1,
        count,
        "a whole number, 0 or more",
        "Accepted without effect: a program takes devices of its machine that are free.",
        has_effect=False,
    ),
    Variable(
        "VLLM_DP_MASTER_IP",
        "127.0.0.1",
        str,
        "an address",
        "Of the machine with program 0, as all of VLLM_DP_SIZE reach it: --data-parallel-address.",
    ),
    Variable(
        "VLLM_DP_MASTER_PORT",
        0,
        port,
        "a TCP port",
        "Of that machine, at which the programs meet whose copies share experts: "
        "--data-parallel-rpc-port, whose default is taken while it is unset.",
    ),
)
