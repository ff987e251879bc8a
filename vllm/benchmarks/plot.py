"""Times to first token and between tokens as an SVG file: over the run, and as a distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from vllm.benchmarks.load import Answer
from vllm.errors import ConfigError

PANEL_WIDTH, PANEL_HEIGHT = 420, 240
MARGIN_LEFT, MARGIN_TOP, MARGIN_RIGHT, MARGIN_BOTTOM = 62, 34, 18, 44
TITLE_HEIGHT = 34
# More dots than this would make the file large, and nobody could tell them apart.
MAX_DOTS = 4000
TICKS = 5
MARKED = (50, 90, 99)  # percentiles
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.h{font-size:15px;font-weight:600}"
    ".t{font-weight:600}.g{stroke:#e4e4e4}.a{stroke:#888}.d{fill:#2563eb;fill-opacity:.45}"
    ".l{fill:none;stroke:#2563eb;stroke-width:1.6}.m{stroke:#dc2626;stroke-dasharray:3 3}"
    ".n{font-size:10px;fill:#dc2626}"
)


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of points; coordinates in the units of its axes, both starting at 0."""

    title: str
    x_label: str
    y_label: str
    x: np.ndarray
    y: np.ndarray
    is_line: bool
    marks: tuple[tuple[str, float], ...] = ()  # vertical lines: name and x


def check_path(path: str) -> None:
    """Raises ConfigError, before an hour of measuring, for a file that cannot be written."""
    if not path.lower().endswith(".svg"):
        raise ConfigError(f"--plot {path}: plots are SVG files; name one that ends in .svg.")
    folder = Path(path).parent
    if not folder.is_dir():
        raise ConfigError(f"--plot {path}: there is no directory {folder}.")


def panels(answers: Sequence[Answer]) -> list[Panel]:
    ttft_at = np.asarray([answer.start_s for answer in answers])
    ttft = np.asarray([answer.first_token_s * 1000 for answer in answers])
    itl_at = np.asarray([moment for a in answers for moment in a.token_times_s()[1:]])
    itl = np.asarray([gap * 1000 for answer in answers for gap in answer.between_s])
    found = []
    for name, at_s, values in (
        ("Time to first token", ttft_at, ttft),
        ("Inter-token latency", itl_at, itl),
    ):
        order = np.linspace(0, len(values) - 1, min(len(values), MAX_DOTS)).astype(np.int64)
        found.append(Panel(f"{name} over the run", "s", "ms", at_s[order], values[order], False))
        ranked = np.sort(values)
        share = 100 * np.arange(1, len(ranked) + 1) / max(len(ranked), 1)
        marks = tuple((f"p{p}", float(np.percentile(ranked, p))) for p in MARKED if ranked.size)
        found.append(
            Panel(f"{name}, distribution", "ms", "%", ranked[order], share[order], True, marks)
        )
    return found


def svg(title: str, charts: Sequence[Panel]) -> str:
    """A document of two charts per row."""
    rows = -(-len(charts) // 2)
    width, height = 2 * PANEL_WIDTH, rows * PANEL_HEIGHT + TITLE_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
        f'<text class="h" x="16" y="23">{escape(title)}</text>',
    ]
    for index, chart in enumerate(charts):
        left = index % 2 * PANEL_WIDTH
        top = index // 2 * PANEL_HEIGHT + TITLE_HEIGHT
        parts.append(f'<g transform="translate({left},{top})">{_panel(chart)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def save(path: str, title: str, answers: Sequence[Answer]) -> None:
    Path(path).write_text(svg(title, panels(answers)), encoding="utf-8")


def nice_step(limit: float) -> float:
    """1, 2 or 5 times a power of ten, so that about TICKS of them reach `limit`."""
    raw = limit / TICKS
    power = 10.0 ** np.floor(np.log10(raw))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999))


def _panel(chart: Panel) -> str:
    x_limit = float(chart.x.max(initial=0)) or 1.0
    y_limit = 100.0 if chart.is_line else float(chart.y.max(initial=0)) or 1.0
    inner_width = PANEL_WIDTH - MARGIN_LEFT - MARGIN_RIGHT
    inner_height = PANEL_HEIGHT - MARGIN_TOP - MARGIN_BOTTOM
    bottom = MARGIN_TOP + inner_height
    xs = MARGIN_LEFT + chart.x / x_limit * inner_width
    ys = bottom - chart.y / y_limit * inner_height
    parts = [
        f'<text class="t" x="{MARGIN_LEFT}" y="{MARGIN_TOP - 14}">{escape(chart.title)}</text>'
    ]
    for value in _ticks(y_limit):
        y = bottom - value / y_limit * inner_height
        parts.append(_line("g", MARGIN_LEFT, y, MARGIN_LEFT + inner_width, y))
        parts.append(_text(MARGIN_LEFT - 6, y + 4, f"{value:g}", "end"))
    for value in _ticks(x_limit):
        x = MARGIN_LEFT + value / x_limit * inner_width
        parts.append(_line("a", x, bottom, x, bottom + 4))
        parts.append(_text(x, bottom + 17, f"{value:g}", "middle"))
    parts.append(_line("a", MARGIN_LEFT, bottom, MARGIN_LEFT + inner_width, bottom))
    parts.append(_text(MARGIN_LEFT + inner_width, bottom + 33, chart.x_label, "end"))
    parts.append(_text(14, MARGIN_TOP + 4, chart.y_label, "start"))
    for level, (name, value) in enumerate(chart.marks):
        x = MARGIN_LEFT + value / x_limit * inner_width
        y = bottom - 8 - 12 * level
        parts.append(_line("m", x, MARGIN_TOP, x, bottom))
        parts.append(f'<text class="n" x="{x - 3:.1f}" y="{y:.1f}" text-anchor="end">{name}</text>')
    points = zip(xs.tolist(), ys.tolist(), strict=True)
    if chart.is_line:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="l" points="{path}"/>')
    else:
        parts += [f'<circle class="d" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in points]
    return "".join(parts)


def _ticks(limit: float) -> list[float]:
    step = nice_step(limit)
    return [step * i for i in range(int(limit / step * 1.001) + 1)]


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
