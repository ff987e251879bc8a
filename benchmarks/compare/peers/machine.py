"""What the machine gives: read bandwidth and the rate of a large matrix product, as JSON.

python machine.py THREADS
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

NUM_RUNS = 5
READ_BYTES = 1 << 30  # far more than any cache holds
GEMM_SIZE = (1024, 2048, 8192)  # rows, inputs, outputs


def main() -> None:
    most_threads = int(sys.argv[1])
    figures: dict[str, Any] = {}
    data = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    floats = data.view(torch.float32)
    for threads in sorted({1, most_threads}):
        torch.set_num_threads(threads)
        # Which reduction comes nearest to the memory's rate differs between CPUs.
        least_s = min(
            fastest_s(reduction)
            for reduction in (data.max, floats.max, partial(torch.dot, floats, floats))
        )
        figures[f"read_gb_per_s_{threads}"] = READ_BYTES / least_s / 1e9
    figures["read_gb_per_s"] = max(figures.values())
    rows, inputs, outputs = GEMM_SIZE
    x = torch.randn(rows, inputs).to(torch.bfloat16)
    weight = torch.randn(outputs, inputs).to(torch.bfloat16)
    seconds = fastest_s(lambda: torch.nn.functional.linear(x, weight))
    figures["gemm_gflop_per_s"] = 2 * rows * inputs * outputs / seconds / 1e9
    print(json.dumps(figures))


def fastest_s(work: Callable[[], Any]) -> float:
    work()
    seconds = []
    for _ in range(NUM_RUNS):
        start_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start_s)
    return min(seconds)


if __name__ == "__main__":
    main()
