"""Figures of all repetitions, and what they say together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.compare.engines import OURS
from benchmarks.compare.models import SHAPES, ModelShape
from benchmarks.compare.workloads import FIGURES

MACHINE_FIGURES = ("read_gb_per_s_1", "read_gb_per_s_2", "gemm_gflop_per_s")


@dataclass(frozen=True, slots=True)
class Record:
    """What one engine did in one workload of one repetition: figures, or a problem."""

    repetition: int
    model: str
    engine: str
    workload: str
    figures: dict[str, float] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(slots=True)
class Results:
    """Everything a run found out; written as it grows."""

    settings: dict[str, Any]
    machine: list[dict[str, float]] = field(default_factory=list)  # one per repetition and model
    records: list[Record] = field(default_factory=list)
    first_tokens: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # model, engine
    versions: dict[str, str] = field(default_factory=dict)  # of engines

    def models(self) -> list[str]:
        return _unique(record.model for record in self.records)

    def engines(self) -> list[str]:
        return _unique(record.engine for record in self.records)

    def figures(self, model: str) -> list[str]:
        """Names of those that some engine has for a model, in the order of FIGURES."""
        found = {
            name for record in self.records if record.model == model for name in record.figures
        }
        return [name for name in FIGURES if name in found]

    def spread(self, model: str, engine: str, name: str) -> Spread | None:
        values = [
            record.figures[name]
            for record in self.records
            if (record.model, record.engine) == (model, engine) and name in record.figures
        ]
        return Spread.of(values) if values else None

    def machine_spread(self, name: str) -> Spread | None:
        values = [figures[name] for figures in self.machine if name in figures]
        return Spread.of(values) if values else None

    def problems(self) -> list[Record]:
        return [record for record in self.records if record.problem]

    def against_best_peer(self, model: str, name: str) -> tuple[str, float] | None:
        """The best peer, and how many times better we are (below 1: worse)."""
        ours = self.spread(model, OURS, name)
        peers = {
            engine: spread.median
            for engine in self.engines()
            if engine != OURS and (spread := self.spread(model, engine, name))
        }
        if ours is None or not peers:
            return None
        if FIGURES[name].more_is_better:
            best = max(peers, key=peers.__getitem__)
            return best, ours.median / peers[best]
        best = min(peers, key=peers.__getitem__)
        return best, peers[best] / ours.median

    def roofline(self, model: str, engine: str) -> dict[str, float]:
        """Shares of what the machine gives, both measured in this run."""
        shares = {}
        shape = SHAPES[model]
        decode = self.spread(model, engine, "decode_ms")
        floor_ms = self.decode_floor_ms(shape)
        if decode and floor_ms:
            shares["decode_of_bandwidth"] = floor_ms / decode.median
        prefill = self.spread(model, engine, "prefill_tokens_per_s")
        gemm = self.machine_spread("gemm_gflop_per_s")
        if prefill and gemm:
            seconds = 2048 / prefill.median
            shares["prefill_of_gemm"] = shape.prefill_flops(2048) / seconds / gemm.median / 1e9
        return shares

    def decode_floor_ms(self, shape: ModelShape) -> float:
        """Time to read the weights of one token at the bandwidth of this machine; 0: unknown."""
        read = self.machine_spread("read_gb_per_s")
        return shape.decode_bytes / read.median / 1e6 if read else 0.0

    def agreement(self, model: str, engine: str) -> str:
        """Leading tokens that equal ours, of all that were compared."""
        tokens = self.first_tokens.get(model, {})
        if OURS not in tokens or engine not in tokens:
            return ""
        pairs = list(zip(tokens[OURS], tokens[engine], strict=False))
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        return f"{same}/{len(pairs)}"


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
