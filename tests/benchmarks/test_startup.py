from __future__ import annotations

import pytest

from vllm.benchmarks.startup import Start, engine_file, figures, rows
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli.main import main
from vllm.utils.argparse import FlexibleArgumentParser


def test_figures_are_of_the_starts_and_their_phases() -> None:
    starts = [
        Start({"weights": 1.0, "listening": 3.0, "first token": 3.5}),
        Start({"listening": 4.0, "first token": 5.0}),
    ]
    found = figures("m", starts)
    assert found["startup_times"] == [3.5, 5.0] and found["avg_startup_time"] == 4.25
    assert found["ready_times"] == [3.0, 4.0]
    assert found["phases"] == {"weights": [1.0], "listening": [2.0, 4.0], "first token": [0.5, 1.0]}
    assert ("ready", "median 3.50  min 3.00  max 4.00 s") in rows(found)


def test_a_server_gets_the_flags_that_differ_from_the_defaults() -> None:
    engine = EngineArgs("m", max_num_seqs=3, hf_overrides={"a": 1}, enable_prefix_caching=False)
    parser = FlexibleArgumentParser()
    parser.add_argument("model_tag")
    EngineArgs.add_cli_args(parser)
    with engine_file(engine) as path:
        found = parser.parse_args(["m", "--config", path])
    assert EngineArgs.from_cli_args(found).values() == {**engine.values(), "model": ""}


def test_a_server_that_does_not_start_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "startup", "--model", "/no/such", "--disable-tqdm"]) == 2
    message = capsys.readouterr().err
    assert "the server ended; it said:" in message and "/no/such" in message


def test_the_model_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "startup"]) == 2
    assert "--model is missing" in capsys.readouterr().err
