"""The figures as bars, one chart per figure and model, in an SVG file."""

from __future__ import annotations

from html import escape

from benchmarks.compare.engines import OURS
from benchmarks.compare.results import Results, Spread
from benchmarks.compare.workloads import FIGURES

# What a reader asks for first; the rest is in the table.
SHOWN = (
    "decode_ms",
    "ttft_ms",
    "prefill_tokens_per_s",
    "output_tokens_per_s",
    "prefix_cold_s",
    "prefix_warm_s",
    "host_tokens_per_s",
    "host_one_step_us",
    "serve_tokens_per_s",
    "startup_s",
    "peak_rss_mib",
)
COLUMNS = 3
CHART_WIDTH, BAR_HEIGHT, GAP = 380, 16, 6
NAME_WIDTH, VALUE_WIDTH = 140, 66
HEAD_HEIGHT, TITLE_HEIGHT = 40, 26
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.t{font-weight:600}.n{text-anchor:end}"
    ".h{font-size:15px;font-weight:600}.s{font-size:10px;fill:#777}.p{fill:#a3b1c2}"
    ".o{fill:#2563eb}.r{stroke:#111;stroke-width:1}"
)


def svg(results: Results) -> str:
    """A document with a heading per model. Whiskers reach from the least to the most."""
    engines = results.engines()
    chart_height = TITLE_HEIGHT + len(engines) * (BAR_HEIGHT + GAP) + 2 * GAP
    parts: list[str] = []
    top = 0
    for model in results.models():
        parts.append(f'<text class="h" x="12" y="{top + 26}">{escape(model)}</text>')
        top += HEAD_HEIGHT
        names = [name for name in results.figures(model) if name in SHOWN]
        for number, name in enumerate(names):
            left = number % COLUMNS * CHART_WIDTH + 12
            y = top + number // COLUMNS * chart_height
            parts.append(f'<g transform="translate({left},{y})">')
            parts += [*_chart(results, model, name, engines), "</g>"]
        top += -(-len(names) // COLUMNS) * chart_height
    width = COLUMNS * CHART_WIDTH + 24
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + 12}" '
        f'viewBox="0 0 {width} {top + 12}"><style>{STYLE}</style>'
        '<rect width="100%" height="100%" fill="#fff"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])


def _chart(results: Results, model: str, name: str, engines: list[str]) -> list[str]:
    figure = FIGURES[name]
    spreads = {
        engine: spread for engine in engines if (spread := results.spread(model, engine, name))
    }
    limit = max(spread.high for spread in spreads.values()) or 1.0
    scale = (CHART_WIDTH - NAME_WIDTH - VALUE_WIDTH - 12) / limit
    better = "more" if figure.more_is_better else "less"
    parts = [
        f'<text class="t" x="0" y="14">{escape(figure.title)} '
        f'<tspan class="s">{better} is better</tspan></text>'
    ]
    for row, engine in enumerate(engines):
        y = TITLE_HEIGHT + row * (BAR_HEIGHT + GAP)
        base = y + BAR_HEIGHT - 4
        parts.append(f'<text class="n" x="{NAME_WIDTH - 6}" y="{base}">{escape(engine)}</text>')
        spread = spreads.get(engine)
        if spread is None:
            parts.append(f'<text class="s" x="{NAME_WIDTH}" y="{base}">not measured</text>')
        else:
            parts += _bar(spread, y, scale, figure.digits, is_ours=engine == OURS)
    return parts


def _bar(spread: Spread, y: int, scale: float, digits: int, is_ours: bool) -> list[str]:
    width, low, high = spread.median * scale, spread.low * scale, spread.high * scale
    middle = y + BAR_HEIGHT / 2
    kind = "o" if is_ours else "p"
    parts = [
        f'<rect class="{kind}" x="{NAME_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}"/>'
    ]
    if spread.count > 1:
        parts.append(
            f'<line class="r" x1="{NAME_WIDTH + low:.1f}" y1="{middle}" '
            f'x2="{NAME_WIDTH + high:.1f}" y2="{middle}"/>'
        )
    parts.append(
        f'<text x="{NAME_WIDTH + high + 5:.1f}" y="{y + BAR_HEIGHT - 4}">'
        f"{spread.median:,.{digits}f}</text>"
    )
    return parts
