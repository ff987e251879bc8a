"""A node of an engine in a process of its own, whose ranks may meet a fault: see faulty_worker.

python -m tests.engine_e2e.node WHAT OPTIONS

prints a JSON line. WHAT: `tokens` of a few requests on node 0, those of the same requests asked
`twice`, `busy` until something ends node 0, `survive` the loss of a copy of the model on another
machine, `lose` requests with it, or `agent` for another node. OPTIONS: those of the engine, JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import vllm.worker.worker
from tests.engine_e2e.faulty_worker import FaultyWorker
from tests.engine_e2e.test_nodes import generate_on
from tests.engine_e2e.test_tensor_parallel import outputs_of
from vllm import LLM, AsyncEngineArgs, SamplingParams
from vllm.executor import run_node


def main(what: str, options: dict[str, Any]) -> None:
    vllm.worker.worker.Worker = FaultyWorker  # type: ignore[misc]
    said: dict[str, Any] = {}
    try:
        if what == "agent":
            run_node(AsyncEngineArgs(**options, headless=True).create_engine_config())
        else:
            said["tokens"] = generate(what, options)
    except Exception as error:
        said["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps({**said, "at_s": time.monotonic()}), flush=True)


def survive(llm: LLM) -> list[list[int]]:
    """Tell of the first request that fails, and make others afterwards."""
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    prompts = [{"prompt_token_ids": [5, 6, number]} for number in range(4)]
    print(json.dumps({"is_running": True}), flush=True)
    while True:
        ends = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
        if failed := [end for end in ends if end.finish_reason == "error"]:
            print(json.dumps({"lost": failed[0].stop_reason, "at_s": time.monotonic()}), flush=True)
            return [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)]


def lose(llm: LLM) -> list[str]:
    """How requests end that never would."""
    print(json.dumps({"is_running": True}), flush=True)
    params = SamplingParams(max_tokens=10**6, temperature=0, ignore_eos=True)
    prompts = [{"prompt_token_ids": [5, 6, number]} for number in range(4)]
    while True:
        ends = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
        if failed := [str(end.stop_reason) for end in ends if end.finish_reason == "error"]:
            return failed


def generate(what: str, options: dict[str, Any]) -> list[Any]:
    llm = LLM(**options)
    try:
        if what == "busy":
            generate_on(llm)
        if what == "survive":
            return survive(llm)
        if what == "lose":
            return lose(llm)
        if what == "twice":
            outputs_of(llm)
        return outputs_of(llm)
    finally:
        llm.llm_engine.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
