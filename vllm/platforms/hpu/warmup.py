"""Warm-up: every prepared shape is compiled and, memory allowing, captured before requests come."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tqdm import tqdm

from vllm.device.launch import Launch, Phase
from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.platforms.hpu.bucketing.table import Bucket
from vllm.platforms.hpu.device import LEAST_PUT, MOST_PUT
from vllm.platforms.hpu.graphs import HpuGraphRunner, HpuRunner, named
from vllm.platforms.hpu.memory import GIB, is_out_of_memory
from vllm.platforms.hpu.planner import PhasedPlanner
from vllm.platforms.hpu.settings import GraphSettings, HpuSettings

if TYPE_CHECKING:
    from vllm.device.collectives import Collectives
    from vllm.device.warmup import WarmUpRunner

logger = init_logger(__name__)

_NAMES: Final = {Phase.PREFILL: "Prompt", Phase.DECODE: "Decode"}
# Memory that stays free, whatever is captured: replays and transfers need some.
_SPARE_SHARE: Final = 0.02


@dataclass
class CaptureReport:
    """What became of the graphs of one phase."""

    num_wanted: int
    captured: list[Bucket]
    used_bytes: int = 0
    lacks_memory: bool = False  # the device had none left, whatever the budget said

    @property
    def share(self) -> float:
        return 100 * len(self.captured) / max(1, self.num_wanted)


class WarmUp:
    """One engine's warm-up; `run` does all of it."""

    def __init__(
        self, runner: WarmUpRunner, settings: HpuSettings, utilization: float, ranks: Collectives
    ) -> None:
        assert isinstance(runner.planner, PhasedPlanner), runner.planner
        assert isinstance(runner.graphs, HpuRunner), runner.graphs
        self._runner = runner
        self._planner = runner.planner
        self._graphs = runner.graphs
        self._settings = settings
        self._utilization = utilization
        self._ranks = ranks  # what steers rehearsals must be the same on all of them
        self._sampled_rows: set[int] = set()
        self._failed: dict[Phase, list[Bucket]] = {Phase.PREFILL: [], Phase.DECODE: []}

    def run(self) -> None:
        if self._settings.skip_warmup:
            logger.warning(
                "Skipping warm-up (VLLM_SKIP_WARMUP): the first request of every shape will wait "
                "while it is compiled."
            )
            self._graphs.seal(is_warm=False)
            return
        started, free_before = time.monotonic(), self._free_bytes()
        buckets = self._planner.buckets
        phases = ((Phase.PREFILL, buckets.prompt[::-1]), (Phase.DECODE, buckets.decode[::-1]))
        with self._progress(sum(len(some) for _, some in phases), "Warm-up") as bar:
            self._rehearse_transfers(phases)
            self._rehearse_puts()
            self._planner.placement.rehearse()
            for phase, some in phases:
                self._compile(phase, some, bar)
        self._tell_of_failed()
        phases = tuple(
            (phase, [bucket for bucket in some if bucket not in self._failed[phase]])
            for phase, some in phases
        )
        if isinstance(self._graphs, HpuGraphRunner):
            self._capture_all(phases, self._settings.graphs)
        self._runner.device.synchronize()
        self._graphs.seal()
        logger.info(
            "Warmup finished in %.0f secs, allocated %.2f GiB of device memory",
            time.monotonic() - started,
            max(0, free_before - self._free_bytes()) / GIB,
        )

    def _compile(self, phase: Phase, buckets: Sequence[Bucket], bar: tqdm) -> None:
        for number, bucket in enumerate(buckets, start=1):
            self._log("", phase, number, len(buckets), bucket)
            launch = self._planner.rehearsal_of(phase, bucket)
            try:
                self._rehearse(launch, captures=False)
            except RuntimeError as error:
                self._check_skippable(error, "compiling", launch)
                self._graphs.forget(launch.key)
                self._failed[phase].append(bucket)
            bar.update()

    def _tell_of_failed(self) -> None:
        """Smaller shapes may have fitted: only those that did not are left to requests."""
        failed = [
            f"{_NAMES[phase].lower()} {tuple(bucket)}"
            for phase, some in self._failed.items()
            for bucket in some
        ]
        if failed:
            logger.warning(
                "Out of memory while compiling %d shapes, which are not prepared: %s. A request "
                "that needs one compiles it, or fails. Lower --gpu-memory-utilization, "
                "--max-num-batched-tokens or --max-num-seqs.",
                len(failed),
                ", ".join(failed),
            )

    def _capture_all(
        self, phases: Sequence[tuple[Phase, Sequence[Bucket]]], settings: GraphSettings
    ) -> None:
        """Prompts within their share of the memory, decodes within the rest, then what is left."""
        spare = int(self._runner.device.memory().total_bytes * _SPARE_SHARE)
        available = int(self._ranks.least(max(0, self._free_bytes() - spare)))
        reserved = int(available * settings.reserved_of_free(self._utilization))
        strategies = {
            Phase.PREFILL: settings.prompt_strategy,
            Phase.DECODE: settings.decode_strategy,
        }
        prompt_budget = int(reserved * settings.prompt_ratio)
        budgets = {Phase.PREFILL: prompt_budget, Phase.DECODE: reserved - prompt_budget}
        reports = {phase: CaptureReport(len(some), []) for phase, some in phases}
        with self._progress(sum(len(some) for _, some in phases), "Graph capture") as bar:
            left: dict[Phase, list[Bucket]] = {}
            for phase, some in phases:
                ordered = in_order(some, strategies[phase])
                left[phase] = self._capture(phase, ordered, budgets[phase], reports[phase], bar)
            unused = reserved - sum(report.used_bytes for report in reports.values())
            for phase, rest in left.items():
                if reports[phase].lacks_memory:
                    continue
                used = reports[phase].used_bytes
                left[phase] = self._capture(phase, rest, unused, reports[phase], bar)
                unused -= reports[phase].used_bytes - used
        self._tell_of_uncaptured(reports)
        for phase, report in reports.items():
            self._report(phase, report, left[phase])

    def _capture(
        self,
        phase: Phase,
        buckets: Sequence[Bucket],
        budget: int,
        report: CaptureReport,
        bar: tqdm,
    ) -> list[Bucket]:
        """Capture until the budget is spent; -> those left. The largest so far tells the cost."""
        begun = report.used_bytes
        dearest = 0.0  # bytes per token
        for number, bucket in enumerate(buckets):
            tokens = bucket.rows * bucket.query_len
            if report.used_bytes - begun + dearest * tokens > budget:
                return list(buckets[number:])
            self._log("Graph/", phase, number + 1, len(buckets), bucket)
            free = self._free_bytes()
            launch = self._planner.rehearsal_of(phase, bucket)
            try:
                self._rehearse(launch, captures=True)
            except RuntimeError as error:
                self._check_skippable(error, "capturing", launch)
                report.lacks_memory = True
                return list(buckets[number:])
            used = int(self._ranks.agreed(max(0, free - self._free_bytes())))
            report.used_bytes += used
            report.captured.append(bucket)
            dearest = max(dearest, used / tokens)
            bar.update()
        return []

    def _tell_of_uncaptured(self, reports: Mapping[Phase, CaptureReport]) -> None:
        short = [
            f"{_NAMES[phase].lower()} graphs: {len(report.captured)} of {report.num_wanted}"
            for phase, report in reports.items()
            if report.lacks_memory
        ]
        if short:
            logger.warning(
                "Out of memory while capturing %s are captured, the others will run without. Lower "
                "--gpu-memory-utilization or raise VLLM_GRAPH_RESERVED_MEM to capture more.",
                ", ".join(short),
            )

    def _rehearse(self, launch: Launch, captures: bool) -> None:
        is_new = launch.num_rows not in self._sampled_rows
        self._runner.rehearse(launch, is_new, captures)
        self._sampled_rows.add(launch.num_rows)

    def _rehearse_transfers(self, phases: Sequence[tuple[Phase, Sequence[Bucket]]]) -> None:
        """One of every size, first of all: afterwards each stage takes the time that it needs.

        All stages have the same table, and leave out no size: which shapes they compile and
        capture depends on the memory that each has.
        """
        known = set()
        for phase, buckets in phases:
            for bucket in buckets:
                launch = self._planner.rehearsal_of(phase, bucket)
                if launch.num_tokens not in known:
                    known.add(launch.num_tokens)
                    self._runner.rehearse_transfer(launch)

    def _rehearse_puts(self) -> None:
        """Every size that admissions can bring; they write to the dummy slot."""
        # What start-up left to be done must not become part of the first write's recipe.
        self._runner.device.step_boundary()
        size = LEAST_PUT
        while size <= MOST_PUT:
            self._runner.rehearse_puts(size)
            size *= 2

    def _check_skippable(self, error: RuntimeError, doing: str, launch: Launch) -> None:
        """Raises unless the engine can go on without this shape, for lack of memory alone.

        Raises ConfigError where other ranks are in the same launch: they wait for this one in a
        sum, and nothing can call them back.
        """
        if not is_out_of_memory(error):
            raise error
        if self._ranks.size > 1:
            raise ConfigError(
                f"--device hpu: memory ran out while {doing} the shape {named(launch.key)}, which "
                f"the other ranks cannot leave out any more: {error}. Lower "
                "--gpu-memory-utilization, --max-num-batched-tokens or --max-num-seqs, or end "
                "other processes on its device (hl-smi shows them)."
            ) from error

    def _free_bytes(self) -> int:
        return self._runner.device.memory().free_bytes

    def _log(self, kind: str, phase: Phase, number: int, total: int, bucket: Bucket) -> None:
        logger.info(
            "[Warmup][%s%s][%d/%d] batch_size:%d query_len:%d num_blocks:%d free_mem:%.2f GiB",
            kind,
            _NAMES[phase],
            number,
            total,
            *bucket,
            self._free_bytes() / GIB,
        )

    def _report(self, phase: Phase, report: CaptureReport, left: Sequence[Bucket]) -> None:
        logger.info(
            "Graph/%s captured:%d (%.1f%%) used_mem:%.2f GiB buckets:%s%s",
            _NAMES[phase],
            len(report.captured),
            report.share,
            report.used_bytes / GIB,
            [tuple(bucket) for bucket in sorted(report.captured)],
            f"; {len(left)} run without a graph" if left else "",
        )

    @contextmanager
    def _progress(self, total: int, name: str) -> Iterator[tqdm]:
        is_shown = self._ranks.rank == 0 and sys.stderr.isatty()
        with tqdm(total=total, desc=name, unit="shape", disable=not is_shown) as bar:
            yield bar


def in_order(buckets: Sequence[Bucket], strategy: str) -> list[Bucket]:
    """min_tokens: few tokens first; max_bs: many rows first, of these few tokens first."""
    if strategy == "max_bs":
        return sorted(buckets, key=lambda b: (-b.rows, b.query_len, b.blocks))
    return sorted(buckets, key=lambda b: (b.rows * b.query_len, b.query_len, b.blocks))
