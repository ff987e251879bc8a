"""A program that torchrun starts once per rank: run by test_external_launcher.

python -m torch.distributed.run ... -m tests.engine_e2e.launched MODEL [CHECK OPTIONS] ...

Each check has an engine of its own, with these options in JSON, one after the other in the same
processes. A check prints lines of JSON; one that fails prints its error, and the next one follows.
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
        num_ranks=len(llm.llm_engine.client.cores[0].ranks),
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


def main(model: str, *words: str) -> int:
    code = 0
    for check, text in zip(words[::2], words[1::2], strict=True):
        options = json.loads(text)
        if "seed_of_rank" in options:
            options["seed"] = options.pop("seed_of_rank")[RANK]
        ranks = options.pop("ranks", 1)
        linger_s = options.pop("linger_s_of_rank", {}).get(str(RANK), 0.0)
        options["distributed_executor_backend"] = "external_launcher"
        llm = None
        try:
            llm = engine(Path(model), ranks, **options)
            CHECKS[check](llm)
        except Exception as error:
            tell(check=check, failed=f"{type(error).__name__}: {error}")
            code = 1
            time.sleep(linger_s)  # while the error keeps what its engine had
        finally:
            if llm is not None:
                llm.llm_engine.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
