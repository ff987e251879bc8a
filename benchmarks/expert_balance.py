"""Two ranks with whole experts of a router that prefers those of the first: do moves pay?

python benchmarks/expert_balance.py [--pairs 20] [--only prefill,decode] [--redundant 4]

before   --enable-expert-parallel: nearly all choices are of experts of one rank
after    the same with --enable-eplb: moves are over after the measurement that is not counted
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from benchmarks.compare.models import SHAPES, ensure  # noqa: E402
from benchmarks.pairs import Worker, Workload, in_rounds  # noqa: E402
from benchmarks.ranks import Side, started  # noqa: E402

SHAPE = replace(SHAPES["moe-0.5b"], name="moe-skewed", num_layers=4, vocab=4096)
PREFERENCE = 4.0  # of logits: the largest few of 32 are then among those of the first 16
LOADS = {
    "prefill": Workload(SHAPE.name, 16, 256, 1),
    "decode": Workload(SHAPE.name, 64, 16, 64),
}
INTERVAL = 8  # steps: a measurement has as many, and more


def skewed(folder: Path) -> Path:
    """The model with a router that prefers the first half of its experts."""
    path = ensure(SHAPE, folder)
    done = path / "skewed.json"
    if not done.exists():
        for file in path.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            for name, tensor in tensors.items():
                if name.endswith("mlp.gate.weight"):
                    tensor[: SHAPE.num_experts // 2] *= PREFERENCE
            save_file(tensors, file)
        done.write_text(json.dumps({"preference": PREFERENCE}))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--only", default=",".join(LOADS), help=f"Of {', '.join(LOADS)}.")
    parser.add_argument("--redundant", type=int, default=4, help="Copies of busy experts.")
    parser.add_argument(
        "--models", type=Path, default=Path(tempfile.gettempdir()) / "pairs", help="For the model."
    )
    args = parser.parse_args()
    variables = {"OMP_NUM_THREADS": "2"}
    whole = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
    moving = {
        "enable_eplb": True,
        "num_redundant_experts": args.redundant,
        "eplb_step_interval": INTERVAL,
        "eplb_window_size": INTERVAL,
    }
    sides: list[Side] = [(whole, variables), ({**whole, **moving}, variables)]
    wanted = args.only.split(",")
    loads = {name: load for name, load in LOADS.items() if name in wanted}
    start = partial(started, skewed(args.models))
    in_rounds(start, Worker.seconds, loads, sides, args.pairs)


if __name__ == "__main__":
    main()
