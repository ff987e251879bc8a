"""The program: for each repetition, model and engine one process, one after the other."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare import models, plot, report, serve
from benchmarks.compare.engines import OURS, PEERS, Engine, Limits, parse_peers
from benchmarks.compare.results import Record, Results
from benchmarks.compare.session import EngineProblem, session, tail
from benchmarks.compare.workloads import (
    EVERY_SESSION,
    HOST_MODEL,
    OFFLINE,
    SERVE,
    WORKLOADS,
    Figures,
    Prompts,
    start,
    suits,
)

CONVERT_LIMIT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    engines: list[Engine]
    shapes: list[models.ModelShape]
    workloads: list[str]
    repetitions: int
    limits: Limits
    limit_s: float  # for one order to an engine
    work_dir: Path
    json_path: Path
    plot_path: Path | None
    python: Path  # with torch, for what is not an engine's

    def log(self, engine: Engine, what: str) -> Path:
        folder = self.work_dir / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{engine.name}-{what}.log"


def empty_results(plan: Plan) -> Results:
    return Results(
        {
            "machine": platform.platform(),
            "cpus": list(plan.limits.cpus),
            "kv_gib": plan.limits.kv_gib,
            "engines": [engine.name for engine in plan.engines],
            "repetitions": plan.repetitions,
        }
    )


def run(plan: Plan, results: Results) -> None:
    """Measure everything into `results`. An engine that fails is recorded with what it said."""
    for repetition in range(plan.repetitions):
        say(f"repetition {repetition + 1} of {plan.repetitions}")
        for shape in plan.shapes:
            checkpoint = models.ensure(shape, plan.work_dir)
            # Once per model: what others do on the machine changes within minutes.
            results.machine.append(measure_machine(plan))
            for engine in _turns(plan.engines, repetition):
                for record in measure(plan, engine, shape, checkpoint, repetition, results):
                    results.records.append(record)
                write(plan, results)


def _turns(engines: Sequence[Engine], repetition: int) -> list[Engine]:
    """Another engine goes first each time, so that none always follows the same one."""
    first = repetition % len(engines)
    return [*engines[first:], *engines[:first]]


def measure(
    plan: Plan,
    engine: Engine,
    shape: models.ModelShape,
    checkpoint: Path,
    repetition: int,
    results: Results,
) -> list[Record]:
    wanted = [name for name in plan.workloads if suits(name, shape.name)]
    records = []

    def note(workload: str, figures: Figures | None = None, problem: str = "") -> None:
        records.append(
            Record(repetition, shape.name, engine.name, workload, figures or {}, problem)
        )
        told = ", ".join(f"{name} {value:.5g}" for name, value in (figures or {}).items())
        say(f"  {shape.name:14} {engine.name:14} {workload:10} {told or problem.splitlines()[0]}")

    try:
        convert(plan, engine, checkpoint)
    except EngineProblem as error:
        note("startup", problem=str(error))
        return records
    if any(name != SERVE for name in wanted):
        log = plan.log(engine, shape.name)
        at = "startup"
        try:
            with session(engine, checkpoint, plan.limits, log, plan.limit_s) as opened:
                figures, tokens = start(opened, Prompts.of(shape, at, repetition))
                if not repetition:
                    results.first_tokens.setdefault(shape.name, {})[engine.name] = tokens
                    results.versions[engine.name] = opened.version
                note(at, figures)
                opened.watch.note()
                for at in (name for name in OFFLINE if name in wanted):
                    note(at, OFFLINE[at](opened, Prompts.of(shape, at, repetition)))
                    opened.watch.note()
            note("memory", opened.watch.figures())
        except EngineProblem as error:
            note(at, problem=str(error))
    if SERVE in wanted:
        log = plan.log(engine, f"{shape.name}-serve")
        try:
            figures = serve.measure(engine, shape, checkpoint, plan.limits, log, plan.limit_s)
            note(SERVE, figures)
        except EngineProblem as error:
            note(SERVE, problem=str(error))
    return records


def convert(plan: Plan, engine: Engine, checkpoint: Path) -> None:
    """Have an engine's environment make its format of a checkpoint, once. Raises EngineProblem."""
    target = engine.model_path(checkpoint)
    if not engine.kind.converter or target.exists():
        return
    say(f"  {engine.name}: converting {checkpoint.name}")
    log = plan.log(engine, f"{checkpoint.name}-convert")
    command = [engine.python, str(PEERS / engine.kind.converter), str(checkpoint), str(target)]
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                command,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                env=engine.environment(plan.limits),
                timeout=CONVERT_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EngineProblem(f"no {target.name} within {CONVERT_LIMIT_S:.0f} s") from None
    if done.returncode:
        raise EngineProblem(f"cannot convert the model\n{tail(log)}")


def measure_machine(plan: Plan) -> dict[str, float]:
    threads = str(len(plan.limits.cpus))
    command = [str(plan.python), str(PEERS / "machine.py"), threads]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = dict(json.loads(done.stdout))
    told = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
    say(f"  machine: {told}")
    return figures


def write(plan: Plan, results: Results) -> None:
    plan.json_path.write_text(json.dumps(report.document(results), indent=1) + "\n")
    if plan.plot_path:
        plan.plot_path.write_text(plot.svg(results), encoding="utf-8")


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    plan = plan_of(parser().parse_args(argv))
    # Whoever ends the program means what it has started, too; servers outlive it otherwise.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if hasattr(os, "sched_setaffinity"):
        # What is started inherits it: engines get as many cores as threads, and the client shares
        # them.
        os.sched_setaffinity(0, plan.limits.cpus)
    results = empty_results(plan)
    try:
        run(plan, results)
    finally:
        print(report.text(results))


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="compare.py", description="Our engine and others side by side on this machine."
    )
    options.add_argument(
        "--peers",
        default=OURS,
        help="Engines as name=environment, by commas; a name alone lives in this environment.",
    )
    options.add_argument(
        "--workloads", default=",".join(WORKLOADS), help=f"Of {', '.join(WORKLOADS)}."
    )
    options.add_argument(
        "--models", default=f"qwen3-0.6b,{HOST_MODEL}", help=f"Of {', '.join(models.SHAPES)}."
    )
    options.add_argument(
        "--repetitions", type=int, default=3, help="Processes per engine, in turn."
    )
    options.add_argument("--threads", type=int, default=2, help="Cores for an engine.")
    options.add_argument("--kv-gib", type=int, default=2, help="KV cache of an engine, in GiB.")
    options.add_argument(
        "--limit-s", type=float, default=900.0, help="Longest wait for one answer."
    )
    options.add_argument(
        "--work-dir", type=Path, default=Path("compare"), help="For models, logs and caches."
    )
    options.add_argument("--output-json", type=Path, help="Default: results.json in --work-dir.")
    options.add_argument("--plot", type=Path, help="Draw the figures into this SVG file.")
    return options


def plan_of(args: argparse.Namespace) -> Plan:
    """Ends the program with what is wrong, if something is."""
    work_dir = args.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    home = Path(sys.prefix)
    try:
        engines = parse_peers(args.peers, home)
        workloads = _chosen("--workloads", args.workloads, WORKLOADS)
        names = _chosen("--models", args.models, models.SHAPES)
    except ValueError as error:
        sys.exit(str(error))
    cpus = available_cpus()[: args.threads]
    if len(cpus) < args.threads:
        sys.exit(f"--threads {args.threads}: this process may use {len(cpus)} CPUs")
    return Plan(
        engines=engines,
        shapes=[models.SHAPES[name] for name in names],
        workloads=[*workloads, *EVERY_SESSION],
        repetitions=args.repetitions,
        limits=Limits(tuple(cpus), args.kv_gib),
        limit_s=args.limit_s,
        work_dir=work_dir,
        json_path=args.output_json or work_dir / "results.json",
        plot_path=args.plot,
        python=home / "bin" / "python",
    )


def available_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _chosen(flag: str, text: str, known: Sequence[str] | dict[str, models.ModelShape]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{flag} {', '.join(unknown)}: known are {', '.join(known)}")
    return names
