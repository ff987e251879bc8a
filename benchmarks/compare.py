"""Our engine and others side by side on one machine: the same models, prompts and threads.

python benchmarks/compare.py --peers ours,vllm=ENVIRONMENT,llama=ENVIRONMENT
                             [--workloads latency,…] [--models qwen3-0.6b,tiny] [--repetitions 3]

Each engine runs in its own environment, named by path; docs/performance.md has the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.compare.main import main

if __name__ == "__main__":
    main()
