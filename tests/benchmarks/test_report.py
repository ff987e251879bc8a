import json

from vllm.benchmarks import report


def test_summary_is_in_milliseconds():
    figures = report.summary([0.001, 0.003], [50])
    assert figures == {"mean_ms": 2.0, "p50_ms": 2.0}
    assert report.summary([], [50]) == {}


def test_table_aligns_names():
    text = report.table("Title", [("a", "1"), ("long name", "2")])
    assert text.splitlines()[2:] == ["a          1", "long name  2"]


def test_result_is_json(tmp_path):
    report.save(tmp_path / "x.json", {"a": 1.5})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1.5}
