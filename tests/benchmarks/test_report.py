import json

from vllm.benchmarks import report


def test_percentiles_keep_the_unit_of_the_values():
    assert report.percentiles([1.0, 3.0], [50, 99.5]) == {"50": 2.0, "99.5": 2.99}


def test_table_aligns_names():
    text = report.table("Title", [("a", "1"), ("long name", "2")])
    assert text.splitlines()[2:] == ["a          1", "long name  2"]


def test_result_is_json(tmp_path):
    report.save(tmp_path / "x.json", {"a": 1.5})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1.5}
