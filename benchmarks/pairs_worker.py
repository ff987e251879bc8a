"""One engine of pairs.py: measures what it is told on its input, a JSON line each."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(
        sys.argv[1],
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=1 << 30,
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **json.loads(sys.argv[2]),
    )
    print("0", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if command.get("peak"):
            status = Path("/proc/self/status").read_text()
            print(next(row for row in status.splitlines() if row.startswith("VmHWM")).split()[1])
        else:
            params = SamplingParams(
                temperature=0, max_tokens=command["output"], ignore_eos=True, detokenize=False
            )
            prompts = [
                {"prompt_token_ids": [random.randrange(3, 500) for _ in range(command["prompt"])]}
                for _ in range(command["rows"])
            ]
            started = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            print(time.perf_counter() - started)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
