"""Random traffic on a warmed-up HPU engine, in which nothing may be compiled or waited for.

python -m tests.platforms.hpu.traffic [NUM_REQUESTS] [given|sync|compile|fallback]   prints JSON

`given`: plans give tokens, too. The others provoke what the check is there to find.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hpu_emulator.counters
import hpu_emulator.fallbacks
import hpu_emulator.strict
import msgspec
import numpy as np
import torch

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.messages.step import StepPlan
from vllm.sample.static_sampler import StaticSampler

MODEL = Path(__file__).resolve().parents[3] / "examples" / "models" / "tiny-story"
MAX_MODEL_LEN = 256
# Median and spread of the logarithms of prompt and output lengths, as chat traffic has them.
PROMPT, OUTPUT = (np.log(60), 0.9), (np.log(10), 0.6)
WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 9},
    {"temperature": 0.9, "top_p": 0.8, "min_p": 0.01},
)


@dataclass(frozen=True)
class Arrival:
    step: int
    prompt: list[int]
    params: SamplingParams
    abort_after: int  # steps; 0: never


def arrivals(num_requests: int, seed: int = 0) -> Iterator[Arrival]:
    rng = np.random.default_rng(seed)
    shared = rng.integers(3, 1000, 64).tolist()
    step = 0
    for i in range(num_requests):
        step += int(rng.poisson(1.2))
        length = int(np.clip(rng.lognormal(*PROMPT), 1, MAX_MODEL_LEN - 40))
        output = int(np.clip(rng.lognormal(*OUTPUT), 1, 39))
        prompt = rng.integers(3, 1000, length).tolist()
        if i % 3 == 0:
            prompt = [*shared[: int(rng.integers(16, 64))], *prompt][:length]
        params = SamplingParams(max_tokens=output, seed=i, ignore_eos=True, **WAYS[i % len(WAYS)])
        yield Arrival(step, prompt, params, int(rng.integers(1, 9)) if i % 11 == 0 else 0)


def serve(llm: LLM, todo: deque[Arrival]) -> int:
    """-> number of requests that ended by themselves."""
    engine, step, finished = llm.llm_engine, 0, 0
    aborts: dict[int, list[str]] = {}
    number = 0
    while todo or engine.has_unfinished_requests():
        while todo and (todo[0].step <= step or not engine.has_unfinished_requests()):
            arrival = todo.popleft()
            engine.add_request(
                str(number), TokensPrompt(prompt_token_ids=arrival.prompt), arrival.params
            )
            if arrival.abort_after:
                aborts.setdefault(step + arrival.abort_after, []).append(str(number))
            number += 1
        finished += sum(output.finished for output in engine.step())
        engine.abort_request(aborts.pop(step, []))
        step += 1
    return finished


def provoke_sync(llm: LLM) -> None:
    draw = StaticSampler._draw

    def reading(self: Any, logits: torch.Tensor, rows: Any) -> torch.Tensor:
        logits.max().item()
        return draw(self, logits, rows)

    StaticSampler._draw = reading  # type: ignore[method-assign]


def provoke_compile(llm: LLM) -> None:
    runner = worker_of(llm).runner
    table = runner.planner.buckets
    known = table.find_decode

    def unheard_of(rows: int, blocks: int) -> Any:
        bucket = known(rows, blocks)
        return bucket._replace(blocks=bucket.blocks + 1)

    table.find_decode = unheard_of


def provoke_fallback(llm: LLM) -> None:
    sample = StaticSampler.sample

    def falling(self: Any, logits: torch.Tensor, rows: Any) -> Any:
        torch.linalg.inv(torch.eye(2, device="hpu"))
        return sample(self, logits, rows)

    StaticSampler.sample = falling  # type: ignore[method-assign]


class Giving:
    """Has every plan give tokens that their rows have already.

    Those are whole prompts as requests are admitted, and the first token of every row. So all
    sizes come, also those that need no padding, and nothing is generated differently.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self._first = np.zeros(9, np.int32)  # by slot

    def into(self, llm: LLM) -> None:
        worker = worker_of(llm)
        execute = worker.execute
        worker.execute = lambda plan: execute(self._plan(plan))

    def _plan(self, plan: StepPlan) -> StepPlan:
        tokens: list[tuple[int, int, int]] = []
        for admission in plan.admissions:
            self._first[admission.slot] = admission.token_ids[0]
            ids = admission.token_ids.tolist()
            tokens += [(admission.slot, i, ids[i]) for i in range(1, len(ids))]
        tokens += [(slot, 0, int(self._first[slot])) for slot in plan.slots.tolist()]
        self.num_tokens += len(tokens)
        given = np.array(tokens, np.int32).reshape(-1, 3)
        return msgspec.structs.replace(plan, given=given)


# One provoked thing at a time must be found for itself, not for what follows from it.
FORBIDDEN = {
    "": ("no_sync", "no_compile"),
    "given": ("no_sync", "no_compile"),
    "sync": ("no_sync",),
    "compile": ("no_compile",),
    "fallback": (),
}
PROVOKE: dict[str, Callable[[LLM], None]] = {
    "sync": provoke_sync,
    "compile": provoke_compile,
    "fallback": provoke_fallback,
}


def worker_of(llm: LLM) -> Any:
    executor: Any = llm.llm_engine.client.core.executor
    return executor._inline._worker


def engine(model: Path = MODEL, **options: Any) -> LLM:
    return LLM(
        str(model),
        device="hpu",
        dtype="float32",
        block_size=16,
        disable_log_stats=True,
        **{"max_num_seqs": 8, **options},
    )


def main(num_requests: int, provoked: str = "") -> None:
    llm = engine(
        max_model_len=MAX_MODEL_LEN, max_num_batched_tokens=128, num_gpu_blocks_override=45
    )
    core = llm.llm_engine.client.core
    before = hpu_emulator.counters.snapshot()
    problem = ""
    finished = 0
    giving = Giving()
    if provoked == "given":
        giving.into(llm)
    elif provoked:
        PROVOKE[provoked](llm)
    try:
        with hpu_emulator.strict.strict(*FORBIDDEN[provoked]):
            finished = serve(llm, deque(arrivals(num_requests)))
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    counters = hpu_emulator.counters.since(before)
    stats = core.scheduler.snapshot()
    result = {
        "problem": problem,
        "finished": finished,
        "given": giving.num_tokens,
        "preemptions": stats.num_preemptions,
        "prefix_hits": stats.prefix_hits,
        "fallback_ops": dict(hpu_emulator.fallbacks.counts()),
        **asdict(counters),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500, *sys.argv[2:3])
