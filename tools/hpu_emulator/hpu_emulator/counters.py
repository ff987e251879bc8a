"""All counters at one moment, and what happened between two."""

from __future__ import annotations

from dataclasses import dataclass

from hpu_emulator import fallbacks, recipes, syncs


@dataclass(frozen=True, slots=True)
class Counters:
    compilations: int
    launches: int
    ops: int
    syncs: int
    async_reads: int
    fallbacks: int

    def __sub__(self, before: Counters) -> Counters:
        return Counters(
            self.compilations - before.compilations,
            self.launches - before.launches,
            self.ops - before.ops,
            self.syncs - before.syncs,
            self.async_reads - before.async_reads,
            self.fallbacks - before.fallbacks,
        )


def snapshot() -> Counters:
    return Counters(
        recipes.count(),
        recipes.launches(),
        recipes.ops(),
        syncs.count(),
        syncs.async_reads(),
        fallbacks.total(),
    )


def since(before: Counters) -> Counters:
    return snapshot() - before
