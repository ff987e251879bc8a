"""Host times of two source trees side by side: runs host.py or hpu_host.py of each in turn.

python benchmarks/host_pairs.py --before TREE [--after TREE] [--pairs 20] [--path DIRECTORY]
                                host.py --workload waiting steps --batch 1 64 256 --repeats 1

What follows the script's name goes to it. A pair is one run of each tree, the order drawn by lot; a
ratio above 1 means that `after` takes more. DIRECTORY comes before the tree on the module path: the
emulated device, for hpu_host.py. The interval is that of the median ratio, as in pairs.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm import tqdm  # noqa: E402

from benchmarks.pairs import report  # noqa: E402

FIGURES = ("step_us", "host_us")
CASE = ("workload", "batch", "streams", "waiting")  # fields that tell one line from another


def figures(tree: Path, script: str, arguments: list[str], path: str) -> dict[str, float]:
    """Medians that the script of this tree prints, by case and figure."""
    modules = os.pathsep.join([*([path] if path else []), str(tree)])
    env = {**os.environ, "PYTHONPATH": modules, "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, str(tree / "benchmarks" / script), *arguments]
    done = subprocess.run(
        command, cwd=tree, env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    found = {}
    for line in map(json.loads, done.stdout.splitlines()):
        case = " ".join(f"{key}={line[key]}" for key in CASE if key in line)
        found.update({f"{case} {name}": line[name][0] for name in FIGURES if name in line})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="Source tree to compare with.")
    parser.add_argument("--after", type=Path, default=ROOT, help="Source tree of the change.")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--path", default="", help="Directory of modules, before the tree.")
    parser.add_argument("script", choices=("host.py", "hpu_host.py"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    trees = [args.before.resolve(), args.after.resolve()]
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in tqdm(range(args.pairs), desc=args.script):
        order = [0, 1]
        random.shuffle(order)
        taken = {i: figures(trees[i], args.script, args.arguments, args.path) for i in order}
        for name, before in taken[0].items():
            pairs[name].append((before, taken[1][name]))
    for name, found in pairs.items():
        report(name, found)


if __name__ == "__main__":
    main()
