"""Several ranks on emulated HPUs beside one CPU: run by test_tensor_parallel and test_stages.

python -m tests.platforms.hpu.ranks CHECK [ARGUMENT ...]   prints JSON lines; see CHECKS
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import vllm.worker.worker
from tests.platforms.hpu import features, in_mode, watching
from tests.platforms.hpu.traffic import MODEL, WAYS, Arrival, engine, serve
from tools.tiny_models import random_checkpoint
from vllm import LLM, SamplingParams

LENGTHS = Path(__file__).parent / "chat_lengths.csv"
MAX_MODEL_LEN = 128
SCALE = 40  # the lengths of the file are those of a model of 4096 and more tokens


def tell(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def tokens(arch: str, how: str) -> None:
    """Those that one rank on the CPU gives. `how`: options in JSON."""
    options = json.loads(how)
    size = options.get("tensor_parallel_size", 1)
    shape = {} if size <= 4 else {"num_attention_heads": 8, "num_key_value_heads": 4}
    shape |= options.pop("shape", {})
    if layers := options.pop("num_hidden_layers", None):
        shape["num_hidden_layers"] = layers
    with tempfile.TemporaryDirectory() as folder:
        path = random_checkpoint.make(arch, Path(folder), seed=3, **shape)
        given = in_mode.with_engine(path, "hpu", **options)
        expected = in_mode.with_engine(path, "cpu")
    tell(problem="" if given == expected else f"ranks {given}, one {expected}")


def everything(engine: str, ranks: str, *flags: str) -> None:
    """What requests can ask for, but for functions, which need the model in this process."""
    how = {**features.ENGINES[engine], "enforce_eager": "--enforce-eager" in flags}
    given = features.answers("hpu", {**how, **json.loads(ranks)}, functions=False)
    expected = features.answers("cpu", how, functions=False)
    for want in given:
        found = [
            features.difference(*pair) for pair in zip(given[want], expected[want], strict=True)
        ]
        tell(name=want, problem="; ".join(filter(None, found)))


def traffic(num_requests: str, ranks: str) -> None:
    """Chat as it comes, after which all ranks must have launched the same. `ranks`: JSON."""
    with_model(MODEL, num_requests, ranks)


def traffic_of(arch: str, num_requests: str, ranks: str) -> None:
    """The same, of a random model; `ranks` may say how many layers it has."""
    options = json.loads(ranks)
    layers = options.pop("num_hidden_layers", None)
    shape = {"num_hidden_layers": layers} if layers else {}
    with tempfile.TemporaryDirectory() as folder:
        path = random_checkpoint.make(arch, Path(folder), seed=3, **shape)
        with_model(path, num_requests, json.dumps(options))


def with_model(path: Path, num_requests: str, ranks: str) -> None:
    vllm.worker.worker.Worker = watching.Recorded  # type: ignore[misc]
    llm = engine(
        model=path,
        max_model_len=MAX_MODEL_LEN,
        **{"max_num_batched_tokens": 64, "num_gpu_blocks_override": 24, **json.loads(ranks)},
    )
    llm.collective_rpc(watching.begin)
    problem, finished = "", 0
    try:
        finished = serve(llm, deque(arrivals(int(num_requests))))
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    counts = llm.collective_rpc(watching.end) if not problem else []
    launches = [rank.pop("seen") for rank in counts]
    for number, some in enumerate(zip(*launches, strict=False)):
        if len(set(some)) > 1:
            problem = f"launch {number} differs: {some}"
            break
    shapes = llm.collective_rpc("launch_shapes") if not problem else []
    launched = [[shape[:5] for shape in some] for some in shapes]  # names, and how often
    stats = llm.llm_engine.client.core.scheduler.snapshot()
    tell(
        problem=problem,
        finished=finished,
        num_launches=[len(some) for some in launches],
        same_shapes=all(some == launched[0] for some in launched),
        ranks=counts,
        preemptions=stats.num_preemptions,
        prefix_hits=stats.prefix_hits,
    )
    llm.llm_engine.shutdown()


def traffic_of_copies(arch: str, num_requests: str, ranks: str) -> None:
    """Chat over copies that launch together. `ranks`: JSON."""
    with tempfile.TemporaryDirectory() as folder:
        llm = engine(
            model=random_checkpoint.make(arch, Path(folder), seed=3),
            max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=64,
            num_gpu_blocks_override=24,
            **json.loads(ranks),
        )
        llm.collective_rpc(watching.begin_in_any_process)
        finished = serve(llm, deque(arrivals(int(num_requests))))
        counts = llm.collective_rpc(watching.end_of_shapes)
        llm.llm_engine.call("check_integrity")
        llm.llm_engine.shutdown()
    shapes = [rank.pop("shapes") for rank in counts]
    # A last step may not have reached all when the counting ended.
    shortest = min(map(len, shapes))
    tell(
        finished=finished,
        num_launches=[len(some) for some in shapes],
        same_shapes=all(some[:shortest] == shapes[0][:shortest] for some in shapes),
        ranks=counts,
    )


def arrivals(num_requests: int) -> Iterator[Arrival]:
    rng = np.random.default_rng(0)
    lines = [line for line in LENGTHS.read_text().splitlines() if not line.startswith("#")]
    shared = rng.integers(3, 1000, 32).tolist()
    step = 0
    for i, line in enumerate(lines[:num_requests]):
        step += int(rng.poisson(1.2))
        context, generated = (-(-int(word) // SCALE) for word in line.split(","))
        length = min(context, MAX_MODEL_LEN - 20)
        prompt = [*shared[: (i % 3) * 16], *rng.integers(3, 1000, length).tolist()][:length]
        params = SamplingParams(
            max_tokens=min(generated, 19), seed=i, ignore_eos=True, **WAYS[i % len(WAYS)]
        )
        yield Arrival(step, prompt, params, int(rng.integers(1, 9)) if i % 11 == 0 else 0)


def unequal(blocks: str, ranks: str) -> None:
    """Ranks on devices of the sizes that the environment lists. `ranks`: JSON."""
    vllm.worker.worker.Worker = watching.Unequal  # type: ignore[misc]
    llm = LLM(
        str(MODEL),
        device="hpu",
        dtype="float32",
        max_model_len=32,
        max_num_batched_tokens=32,
        max_num_seqs=2,
        block_size=16,
        num_gpu_blocks_override=int(blocks) or None,
        **json.loads(ranks),
    )
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    outputs = llm.generate(["Once upon", "The cat"], params, use_tqdm=False)
    graphs = llm.collective_rpc(watching.captured)
    tell(tokens=[list(output.outputs[0].token_ids) for output in outputs], graphs=graphs)
    llm.llm_engine.shutdown()


CHECKS: dict[str, Callable[..., None]] = {
    "tokens": tokens,
    "everything": everything,
    "traffic": traffic,
    "traffic_of": traffic_of,
    "traffic_of_copies": traffic_of_copies,
    "unequal": unequal,
}

if __name__ == "__main__":
    CHECKS[sys.argv[1]](*sys.argv[2:])
