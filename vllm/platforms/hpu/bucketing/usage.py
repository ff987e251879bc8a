"""How the buckets are used: what was asked for, and what padding was computed with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vllm.platforms.hpu.bucketing.table import Bucket


@dataclass(slots=True)
class Usage:
    """Sums over the launches of one bucket; `real` without padding."""

    launches: int = 0
    real_rows: int = 0
    real_tokens: int = 0
    real_blocks: int = 0


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One line of the table. Shares are of what was computed: 0.25 is a quarter of padding."""

    phase: str
    bucket: Bucket
    launches: int
    row_padding: float
    token_padding: float
    block_padding: float
    is_prepared: bool


@dataclass(slots=True)
class BucketUsage:
    """Counts by bucket, and the demands themselves, for choosing better buckets later."""

    usage: dict[Bucket, Usage] = field(default_factory=dict)
    demands: dict[Bucket, int] = field(default_factory=dict)  # how often each was asked for

    def record(self, bucket: Bucket, rows: int, longest: int, tokens: int, blocks: int) -> None:
        """A launch of `rows` rows, the longest of `longest` tokens, `tokens` altogether.

        `blocks`: of context, over all rows.
        """
        usage = self.usage.get(bucket)
        if usage is None:
            usage = self.usage[bucket] = Usage()
        usage.launches += 1
        usage.real_rows += rows
        usage.real_tokens += tokens
        usage.real_blocks += blocks
        demand = Bucket(rows, longest, blocks if bucket.query_len == 1 else -(-blocks // rows))
        self.demands[demand] = self.demands.get(demand, 0) + 1

    def table(self, prepared: frozenset[Bucket]) -> Iterator[UsageRow]:
        """Prompts, then decodes, largest last."""
        for bucket, usage in sorted(
            self.usage.items(), key=lambda item: (item[0].query_len == 1, item[0])
        ):
            rows = bucket.rows * usage.launches
            is_decode = bucket.query_len == 1
            blocks = bucket.blocks * (usage.launches if is_decode else rows)
            yield UsageRow(
                phase="decode" if is_decode else "prompt",
                bucket=bucket,
                launches=usage.launches,
                row_padding=_padding(usage.real_rows, rows),
                token_padding=_padding(usage.real_tokens, rows * bucket.query_len),
                block_padding=_padding(usage.real_blocks, blocks),
                is_prepared=bucket in prepared,
            )


def _padding(real: int, computed: int) -> float:
    return 1 - real / computed if computed else 0.0
