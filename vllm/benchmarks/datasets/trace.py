"""Recorded arrivals: CSV of TIMESTAMP,ContextTokens,GeneratedTokens, as Azure publishes."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from vllm.benchmarks.datasets.options import DatasetOptions
from vllm.benchmarks.datasets.sample import Sample
from vllm.errors import ConfigError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_FRACTION = re.compile(r"\.(\d+)")


@dataclass(frozen=True, slots=True)
class Row:
    time_s: float  # since the epoch
    num_prompt_tokens: int
    num_output_tokens: int


def trace_samples(
    options: DatasetOptions, vocabulary: Sequence[int], rng: np.random.Generator
) -> list[Sample]:
    with Path(options.dataset_path).open(encoding="utf-8-sig", newline="") as lines:
        rows = read_rows(lines, options.dataset_path, options.num_prompts)
    first_s = rows[0].time_s
    input_limit = options.trace_max_input_len or max(row.num_prompt_tokens for row in rows)
    output_limit = options.trace_max_output_len or max(row.num_output_tokens for row in rows)
    samples = []
    for row in rows:
        size = min(row.num_prompt_tokens, input_limit)
        ids = [int(token) for token in rng.choice(np.asarray(vocabulary), size=size)]
        at_s = (row.time_s - first_s) / options.trace_speedup
        samples.append(Sample(ids, size, min(row.num_output_tokens, output_limit), at_s))
    return samples


def read_rows(lines: Iterable[str], name: str, limit: int) -> list[Row]:
    """The first `limit` rows, by time. Raises ConfigError naming the line that is wrong."""
    reader = csv.DictReader(lines, skipinitialspace=True)
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ConfigError(
            f"--dataset-path {name}: no column {missing[0]}; a trace has {', '.join(COLUMNS)}."
        )
    rows: list[Row] = []
    for fields in reader:
        if len(rows) == limit:
            break
        try:
            rows.append(_row(fields))
        except (TypeError, ValueError) as error:
            where = f"{name}, line {reader.line_num}"
            raise ConfigError(f"--dataset-path {where}: {error}") from None
    if not rows:
        raise ConfigError(f"--dataset-path {name}: the trace has no rows.")
    return sorted(rows, key=lambda row: row.time_s)


def _row(fields: dict[str, str]) -> Row:
    counts = []
    for column in COLUMNS[1:]:
        text = fields[column] or ""
        if not text.strip().isdecimal():
            raise ValueError(f"{column} {text!r}: must be a whole number.")
        counts.append(int(text))
    if counts[0] < 1:
        raise ValueError(f"{COLUMNS[1]} {counts[0]}: must be at least 1.")
    # Recorded answers may be empty; a server generates at least one token.
    return Row(_seconds(fields[COLUMNS[0]] or ""), counts[0], max(counts[1], 1))


def _seconds(text: str) -> float:
    """Dates with any number of decimals, or plain seconds."""
    text = text.strip()
    try:
        return float(text)
    except ValueError:
        pass
    # Python 3.10 reads three or six decimals, the traces have seven.
    padded = _FRACTION.sub(lambda match: "." + match[1][:6].ljust(6, "0"), text)
    try:
        moment = datetime.fromisoformat(padded.replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"TIMESTAMP {text!r}: neither a date and time nor seconds.") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.timestamp()
