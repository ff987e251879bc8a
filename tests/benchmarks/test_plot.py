from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from vllm.benchmarks import plot
from vllm.benchmarks.load import Answer
from vllm.errors import ConfigError

NAMES = {"s": "http://www.w3.org/2000/svg"}
ANSWERS = [Answer(i / 10, 0.01 * i, [0.001 * i] * 5, 0.02 * i) for i in range(1, 30)]


def drawn(tmp_path: Path, answers: list[Answer]) -> ElementTree.Element:
    path = tmp_path / "p.svg"
    plot.save(str(path), "a <model> & more", answers)
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def test_a_plot_is_svg_with_a_dot_for_every_request(tmp_path: Path) -> None:
    root = drawn(tmp_path, ANSWERS)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    panels = root.findall("s:g", NAMES)
    assert len(panels) == 4
    assert len(panels[0].findall("s:circle", NAMES)) == len(ANSWERS)
    titles = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a <model> & more" in titles and "p99" in titles


def test_everything_is_inside_the_picture(tmp_path: Path) -> None:
    for dot in drawn(tmp_path, ANSWERS).iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 <= float(dot.attrib["cx"]) <= plot.PANEL_WIDTH
        assert 0 <= float(dot.attrib["cy"]) <= plot.PANEL_HEIGHT


@pytest.mark.parametrize("answers", [[], [Answer(0.0, 0.0)], [Answer(0.0, 0.5)]])
def test_a_plot_of_little_is_a_plot(tmp_path: Path, answers: list[Answer]) -> None:
    assert len(drawn(tmp_path, answers).findall("s:g", NAMES)) == 4


def test_a_plot_of_much_stays_small() -> None:
    many = [Answer(i / 1000, 0.01, [0.001] * 50, 0.06) for i in range(2000)]
    assert all(len(panel.x) <= plot.MAX_DOTS for panel in plot.panels(many))


@pytest.mark.parametrize(
    ("limit", "step"), [(1, 0.2), (5, 1), (7, 2), (23, 5), (100, 20), (0.07, 0.02)]
)
def test_ticks_are_at_round_numbers(limit: float, step: float) -> None:
    assert plot.nice_step(limit) == pytest.approx(step)


def test_other_formats_and_missing_directories_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ends in \.svg"):
        plot.check_path("x.png")
    with pytest.raises(ConfigError, match="no directory /no/such"):
        plot.check_path("/no/such/x.svg")
