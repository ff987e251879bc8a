"""A process that runs one engine with one model, and what can be asked of it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare.engines import PEERS, Engine, Limits
from benchmarks.compare.memory import Watch

END_LIMIT_S = 30.0
TAIL_LINES = 12


class EngineProblem(RuntimeError):
    """An engine cannot do what was asked; the text says what it said."""


@dataclass(frozen=True, slots=True)
class Answer:
    seconds: float
    first: list[int]  # tokens of the first prompt


@dataclass(slots=True)
class Session:
    """An engine that has its model loaded. Its process ends with the context of `session`."""

    process: subprocess.Popen[bytes]
    watch: Watch
    log: Path
    limit_s: float  # per order
    start_s: float  # perf_counter before its process was started
    version: str = ""
    _pending: bytes = b""

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> Answer:
        """Greedy, exactly `max_tokens` per prompt. Raises EngineProblem, also for fewer."""
        self.send({"prompts": prompts, "max_tokens": max_tokens})
        told = self.receive()
        if told["lengths"] != [max_tokens] * len(prompts):
            raise EngineProblem(f"asked for {max_tokens} tokens each, got {told['lengths']}")
        return Answer(told["seconds"], told["first"])

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise EngineProblem(f"its process ended\n{tail(self.log)}") from None

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        deadline_s = time.monotonic() + self.limit_s
        while b"\n" not in self._pending:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self.process.stdout], [], [], left_s)[0]:
                raise EngineProblem(f"no answer within {self.limit_s:.0f} s\n{tail(self.log)}")
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                raise EngineProblem(f"its process ended\n{tail(self.log)}")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        told = dict(json.loads(line))
        if problem := told.get("problem"):
            raise EngineProblem(f"{problem}\n{tail(self.log)}")
        return told


@contextmanager
def session(
    engine: Engine, checkpoint: Path, limits: Limits, log: Path, limit_s: float
) -> Iterator[Session]:
    """Start an engine in its own environment and load a model. Raises EngineProblem."""
    settings = {
        "adapter": engine.kind.adapter,
        "model": str(engine.model_path(checkpoint)),
        "tokenizer": str(checkpoint),
        "threads": len(limits.cpus),
        "kv_gib": limits.kv_gib,
        "max_model_len": limits.max_model_len,
        "max_num_seqs": limits.max_num_seqs,
        "distribution": engine.kind.distribution,
        "options": dict(engine.kind.options),
    }
    start_s = time.perf_counter()
    command = [engine.python, str(PEERS / "worker.py")]
    with started(command, engine, limits, log, pipes=True) as process, Watch(process.pid) as watch:
        open_session = Session(process, watch, log, limit_s, start_s)
        open_session.send(settings)
        open_session.version = open_session.receive()["version"]
        yield open_session


@contextmanager
def started(
    command: list[str], engine: Engine, limits: Limits, log: Path, pipes: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the variables of an engine; it and all it started are ended at the end."""
    pipe = subprocess.PIPE if pipes else subprocess.DEVNULL
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=subprocess.PIPE if pipes else output,
            stderr=output,
            # Not where our sources are: `import vllm` must find the engine's own.
            cwd=log.parent,
            env=engine.environment(limits),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process, gently=not pipes)


def _end(process: subprocess.Popen[bytes], gently: bool) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if gently:
        process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_LIMIT_S)
    finally:
        # Its group is its own: what is left of it are processes that outlived their parent.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:])
