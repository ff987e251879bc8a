"""One engine in its own environment, told what to do by JSON lines.

Started as `python worker.py` with the settings as the first line of stdin; each line after it is
one order, {"prompts": [[ids]], "max_tokens": n}, answered with the seconds it took, the number of
tokens per prompt and the first tokens of the first prompt. Ends with its stdin. Depends on nothing
but the standard library and the adapter, as it runs where the engine is installed and we are not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import time
from typing import Any

NUM_TOKENS_TOLD = 8


def main() -> None:
    # What engines print goes where errors go: stdout is for answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    try:
        engine = importlib.import_module(settings["adapter"]).load(settings)
        tell(answers, {"version": version(settings["distribution"])})
        for line in sys.stdin:
            tell(answers, answer(engine, json.loads(line)))
    except Exception as error:
        tell(answers, {"problem": f"{type(error).__name__}: {error}"})
        raise


def answer(engine: Any, order: dict[str, Any]) -> dict[str, Any]:
    start_s = time.perf_counter()
    outputs = engine.generate(order["prompts"], order["max_tokens"])
    seconds = time.perf_counter() - start_s
    first = [int(token) for token in outputs[0][:NUM_TOKENS_TOLD]]
    return {"seconds": seconds, "lengths": [len(tokens) for tokens in outputs], "first": first}


def version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of this tree"


def tell(answers: Any, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


# Engines that start processes by "spawn" import this file again.
if __name__ == "__main__":
    main()
