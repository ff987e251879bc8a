"""Results as tables of Markdown, which are read in a terminal as well, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.compare.engines import OURS
from benchmarks.compare.models import SHAPES
from benchmarks.compare.results import Results, Spread
from benchmarks.compare.workloads import FIGURES

PROBLEM_LETTERS = 160


def document(results: Results) -> dict[str, Any]:
    """Everything, for programs: settings, machine, records, and what they say together."""
    return {
        "settings": results.settings,
        "machine": results.machine,
        "records": [asdict(record) for record in results.records],
        "versions": results.versions,
        "first_tokens": results.first_tokens,
        "summary": {model: _summary(results, model) for model in results.models()},
    }


def _summary(results: Results, model: str) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for engine in results.engines():
        spreads = {
            name: asdict(spread)
            for name in results.figures(model)
            if (spread := results.spread(model, engine, name))
        }
        summary[engine] = {"figures": spreads, "roofline": results.roofline(model, engine)}
    summary["against_best_peer"] = {
        name: {"peer": found[0], "times": found[1]}
        for name in results.figures(model)
        if (found := results.against_best_peer(model, name))
    }
    return summary


def text(results: Results) -> str:
    parts = [machine_text(results)]
    for model in results.models():
        parts += [f"## {model}", model_table(results, model)]
    if problems := results.problems():
        lines = [
            f"- {record.engine}, {record.model}, {record.workload}: "
            f"{' '.join(record.problem.split())[:PROBLEM_LETTERS]}"
            for record in problems
        ]
        parts.append("\n".join(["## Not measured", *dict.fromkeys(lines)]))
    return "\n\n".join(parts) + "\n"


def machine_text(results: Results) -> str:
    names = {
        "read_gb_per_s_1": "read, 1 thread, GB/s",
        "read_gb_per_s": "read, GB/s",
        "gemm_gflop_per_s": "bf16 GEMM, GFLOP/s",
    }
    rows = [
        [title, cell(spread, 1)]
        for name, title in names.items()
        if (spread := results.machine_spread(name))
    ]
    parts = ["## Machine", table([["", "median [min–max]"], *rows])]
    if versions := [f"{name} {version}" for name, version in results.versions.items()]:
        parts.append(f"Versions: {', '.join(versions)}")
    return "\n\n".join(parts)


def model_table(results: Results, model: str) -> str:
    """A row per figure, a column per engine, and how we compare with the best of the others."""
    engines = results.engines()
    has_peers = OURS in engines and len(engines) > 1
    rows = [["", *engines, *(["ours : best peer"] if has_peers else [])]]
    for name in results.figures(model):
        figure = FIGURES[name]
        row = [figure.title]
        row += [cell(results.spread(model, engine, name), figure.digits) for engine in engines]
        if has_peers:
            found = results.against_best_peer(model, name)
            row.append(f"{found[1]:.2f}× {found[0]}" if found else "")
        rows.append(row)
    shares = {engine: results.roofline(model, engine) for engine in engines}
    floor = f"decode / floor of {results.decode_floor_ms(SHAPES[model]):.1f} ms"
    for name, title in (("decode_of_bandwidth", floor), ("prefill_of_gemm", "prefill / GEMM peak")):
        if any(name in share for share in shares.values()):
            row = [title]
            row += [f"{share[name]:.2f}" if name in share else "–" for share in shares.values()]
            rows.append([*row, ""] if has_peers else row)
    if has_peers:
        row = ["first tokens as ours", *(results.agreement(model, engine) for engine in engines)]
        rows.append([*row, ""])
    return table(rows)


def cell(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "–"
    if spread.count == 1:
        return f"{spread.median:,.{digits}f} (1)"
    low, high = f"{spread.low:,.{digits}f}", f"{spread.high:,.{digits}f}"
    return f"{spread.median:,.{digits}f} [{low}–{high}]"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            value.rjust(width) if column else value.ljust(width)
            for column, (value, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
        if not number:
            rules = [
                "-" * width if not i else "-" * (width - 1) + ":" for i, width in enumerate(widths)
            ]
            lines.append(f"| {' | '.join(rules)} |")
    return "\n".join(lines)
