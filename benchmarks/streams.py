"""Many open streams at one server: do all get their tokens, how soon, and what do they cost?

python benchmarks/streams.py --url http://127.0.0.1:8000 [--streams 1000] [--max-tokens 64]
                             [--stalled 0] [--pid PID]

Opens all streams at once. `--stalled` of them never read beyond the first token. With the pid
of the server, memory of its processes is shown before and while all streams are open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(slots=True)
class Outcome:
    first_s: float = 0.0  # request to first event; 0: there was none
    total_s: float = 0.0
    num_events: int = 0
    problem: str = ""


async def read_stream(host: str, port: int, request: bytes, outcome: Outcome, stalls: bool) -> None:
    started_s = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        status = (await reader.readline()).split()
        if len(status) < 2 or status[1] != b"200":
            outcome.problem = f"status {status[1].decode() if len(status) > 1 else 'none'}"
            return
        is_done = False
        async for line in reader:
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]\n":
                is_done = True
                break
            if b'"error"' in line:
                outcome.problem = "an error in the stream"
            if not outcome.num_events:
                outcome.first_s = time.perf_counter() - started_s
                if stalls:
                    reader._transport.pause_reading()  # type: ignore[attr-defined]
                    return await asyncio.sleep(3600)
            outcome.num_events += 1
        if not is_done:
            outcome.problem = "cut off"
    except OSError as error:
        outcome.problem = type(error).__name__
    finally:
        outcome.total_s = time.perf_counter() - started_s
        writer.close()


def request_of(parts: str, max_tokens: int) -> bytes:
    fields = {"prompt": "Once upon a time", "stream": True, "ignore_eos": True, "temperature": 1}
    body = json.dumps({**fields, "max_tokens": max_tokens}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {parts}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def memory_mib(pid: int) -> dict[str, int]:
    """Resident memory of a process and those it started."""
    found, pids = {}, [pid]
    while pids:
        at = pids.pop()
        for path in Path(f"/proc/{at}/task").glob("*/children"):
            pids += map(int, path.read_text().split())
        status = Path(f"/proc/{at}/status").read_text()
        lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        found[f"{at}"] = int(lines["VmRSS"].split()[0]) // 1024
    return found


async def run(args: argparse.Namespace) -> list[Outcome]:
    parts = urlsplit(args.url)
    request = request_of(parts.netloc, args.max_tokens)
    assert parts.hostname and parts.port, args.url
    outcomes = [Outcome() for _ in range(args.streams)]
    if args.pid:
        print("memory before, MiB:", memory_mib(args.pid))
    tasks = [
        asyncio.create_task(
            read_stream(parts.hostname, parts.port, request, outcome, i < args.stalled)
        )
        for i, outcome in enumerate(outcomes)
    ]
    while not all(
        outcome.first_s or task.done() for outcome, task in zip(outcomes, tasks, strict=True)
    ):
        await asyncio.sleep(0.1)
    if args.pid:
        print("memory with all streams open, MiB:", memory_mib(args.pid))
    await asyncio.gather(*tasks[args.stalled :])
    for task in tasks[: args.stalled]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return outcomes[args.stalled :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--stalled", type=int, default=0)
    parser.add_argument("--pid", type=int, default=0)
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    started_s = time.perf_counter()
    outcomes = asyncio.run(run(args))
    wall_s = time.perf_counter() - started_s
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    firsts = sorted(outcome.first_s for outcome in outcomes if outcome.first_s)
    num_events = sum(outcome.num_events for outcome in outcomes)
    print(f"{len(outcomes)} streams in {wall_s:.1f} s, {num_events / wall_s:.0f} events/s")
    print(f"problems: {len(problems)} {sorted(set(problems))}")
    if firsts:
        p99 = firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))]
        print(f"first event: median {statistics.median(firsts):.2f} s, p99 {p99:.2f} s")


if __name__ == "__main__":
    main()
