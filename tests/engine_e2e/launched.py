"""A program that torchrun starts once per rank: run by test_external_launcher.

python -m torch.distributed.run ... -m tests.engine_e2e.launched CHECK MODEL [OPTIONS ...]

OPTIONS are those of an engine, in JSON, one after the other in the same processes. Every process
prints one line of JSON per engine, or "failed" with the error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests.engine_e2e.test_tensor_parallel import engine, outputs_of
from vllm import LLM, SamplingParams

RANK = int(os.environ["RANK"])


def tell(**line: Any) -> None:
    # In one write: all processes print to the same file.
    os.write(1, (json.dumps({"rank": RANK, "pid": os.getpid(), **line}) + "\n").encode())


def tokens(llm: LLM) -> None:
    """Those of the requests that tests of tensor parallelism make, and who this process is."""
    found = outputs_of(llm)
    stats = llm.llm_engine.client.core.scheduler.snapshot()
    tell(
        tokens=found,
        pings=llm.collective_rpc("ping"),
        default_group=[dist.get_rank(), dist.get_world_size()],
        preemptions=stats.num_preemptions,
        num_ranks=len(llm.llm_engine.client.ready.ranks),
    )


def other_requests(llm: LLM) -> None:
    """Rank 1 makes another one."""
    generate(llm, [[5, 6, 7 + RANK]])


def fewer_requests(llm: LLM) -> None:
    """Rank 1 makes one less, and ends."""
    generate(llm, [[5, 6, 7]])
    if RANK != 1:
        generate(llm, [[5, 6, 8]])


def on_and_on(llm: LLM) -> None:
    """Until something ends it."""
    tell(is_running=True)
    until_s = time.monotonic() + 300
    while time.monotonic() < until_s:
        generate(llm, [[5, 6, 7]])


def failing_step(llm: LLM) -> None:
    """On rank 1 alone."""
    if RANK == 1:

        def fail(*_: Any) -> None:
            raise ValueError("planted")

        llm.collective_rpc(lambda worker: setattr(worker, "execute", fail))
    generate(llm, [[5, 6, 7]])


def generate(llm: LLM, prompts: list[list[int]]) -> None:
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)


CHECKS: dict[str, Callable[[LLM], None]] = {
    check.__name__: check
    for check in (tokens, other_requests, fewer_requests, on_and_on, failing_step)
}


def main(check: str, model: str, *all_options: str) -> None:
    for text in all_options:
        options = json.loads(text)
        if "seed_of_rank" in options:
            options["seed"] = options.pop("seed_of_rank")[RANK]
        ranks = options.pop("ranks", 1)
        began_s = time.monotonic()
        try:
            llm = engine(
                Path(model), ranks, distributed_executor_backend="external_launcher", **options
            )
            began_s = time.monotonic()
            CHECKS[check](llm)
            llm.llm_engine.shutdown()
        except Exception as error:
            took_s = time.monotonic() - began_s
            tell(failed=f"{type(error).__name__}: {error}", at_s=time.time(), took_s=took_s)
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
