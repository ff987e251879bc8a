"""The command line: generated flags, both spellings, YAML files, help."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.errors import ConfigError
from vllm.utils import FlexibleArgumentParser


def make_parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(prog="vllm serve")
    parser.add_argument("model_tag", nargs="?")
    EngineArgs.add_cli_args(parser)
    return parser


def changed(*words: str) -> dict[str, Any]:
    """What a command line sets that is not the default."""
    args = EngineArgs.from_cli_args(make_parser().parse_args(list(words)))
    plain = EngineArgs().values()
    return {name: value for name, value in args.values().items() if value != plain[name]}


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        make_parser().parse_args(list(words))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_no_flag_means_the_defaults_of_engine_args() -> None:
    assert changed() == {}
    assert changed("some/model") == {}


def test_every_field_has_a_flag() -> None:
    flags = {action.dest for action in make_parser()._actions}

    assert {field.name for field in dataclasses.fields(EngineArgs)} <= flags


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max-model-len", "1k"], {"max_model_len": 1000}),
        (["-tp", "2"], {"tensor_parallel_size": 2}),
        (["-pp=2"], {"pipeline_parallel_size": 2}),
        (["--max-model-len=1K"], {"max_model_len": 1024}),
        (["--max_model_len", "2.5k"], {"max_model_len": 2500}),
        (["--max-model-len", "10.212345k"], {"max_model_len": 10212}),
        (["--max-model-len", "10.2123451234567t"], {"max_model_len": 10212345123456}),
        (["--max-model-len", "1.5K"], {"max_model_len": 1536}),
        (["--max_num_batched_tokens=2M"], {"max_num_batched_tokens": 2 * 2**20}),
        (["--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--enable-prefix-caching"], {}),
        (["--enable_prefix_caching=false"], {"enable_prefix_caching": False}),
        (["--enable-chunked-prefill", "False"], {"enable_chunked_prefill": False}),
        (["--no-enable-chunked-prefill=false"], {}),
        (["--trust-remote-code", "model"], {"trust_remote_code": True}),
        (["--served-model-name", "a", "b"], {"served_model_name": ["a", "b"]}),
        (["--num-gpu-blocks-override", "7"], {"num_gpu_blocks_override": 7}),
        (["--hf-overrides", '{"a": 1}'], {"hf_overrides": {"a": 1}}),
        (
            ["--hf-overrides.a.b", "1", "--hf_overrides.c=x"],
            {"hf_overrides": {"a": {"b": 1}, "c": "x"}},
        ),
        (["--quantization", "awq"], {"quantization": "awq"}),
        (["--dtype", "half", "--dtype", "float"], {"dtype": "float"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_are_understood(words: list[str], expected: dict[str, Any]) -> None:
    assert changed(*words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-model-length", "5"], "--max-model-length. Did you mean --max-model-len?"),
        (["--max-model", "5"], "unrecognized"),
        (["--max-num-seqs", "few"], "--max-num-seqs 'few': must be a whole number"),
        (["--max-num-seqs", "0"], "must be at least 1"),
        (["--block-size", "15"], "not one of 16, 32"),
        (["--max-model-len", "1.5"], "must be a whole number"),
        (["--max-model-len", "1.0001K"], "must be a whole number"),
        (["--trust-remote-code=maybe"], "must be true or false"),
        (["--hf-overrides", "{a}"], "must be a JSON object"),
        (["--hf-overrides.a"], "expected a value"),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml: No such file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_explained(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in failure(capsys, *words)


def test_without_a_model_the_shipped_one_is_offered() -> None:
    with pytest.raises(ConfigError, match=r"--model is missing.*vllm serve examples/models/") as no:
        EngineArgs().create_engine_config()
    shipped = str(no.value).partition("`vllm serve ")[2].partition("`")[0]
    assert (Path(__file__).parents[2] / shipped / "config.json").is_file()


def test_flags_come_from_a_yaml_file_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "model: from/file\nmax-model-len: 1k\nmax_num_seqs: 4\nenable-prefix-caching: false\n"
        "trust_remote_code: true\nserved-model-name: [a, b]\nhf-overrides: {x: {y: 1}}\nseed:\n"
    )

    found = changed("--config", str(file), "--max-num-seqs", "9")
    assert found == {
        "model": "from/file",
        "max_model_len": 1000,
        "max_num_seqs": 9,
        "enable_prefix_caching": False,
        "trust_remote_code": True,
        "served_model_name": ["a", "b"],
        "hf_overrides": {"x": {"y": 1}},
    }
    assert "model" not in changed("other/model", f"--config={file}")
    assert changed("--max-num-seqs", "9", "--config", str(file))["max_num_seqs"] == 9


def test_mistake_in_a_yaml_file_is_a_mistake(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("max-model-length: 5\n")
    assert "Did you mean --max-model-len?" in failure(capsys, "--config", str(file))
    file.write_text("- a\n")
    assert "must hold lines" in failure(capsys, "--config", str(file))
    file.write_text("a: [\n")
    assert "not valid YAML" in failure(capsys, "--config", str(file))


def test_switches_of_any_kind_and_spelling_come_from_a_yaml_file(tmp_path: Path) -> None:
    parser = FlexibleArgumentParser()
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--other_way", action="store_true")
    parser.add_argument("--both", action=argparse.BooleanOptionalAction, default=True)
    file = tmp_path / "x.yaml"
    file.write_text("plain: true\nother_way: false\nno-both: true\n")
    found = parser.parse_args(["--config", str(file)])
    assert (found.plain, found.other_way, found.both) == (True, False, False)
    assert parser.parse_args([f"--config={file}", "--both"]).both


def help_text(capsys: pytest.CaptureFixture[str], word: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        make_parser().parse_args([word])
    assert stopped.value.code in (None, 0)
    return capsys.readouterr().out


def test_help_is_grouped_and_quiet_about_flags_without_use(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = help_text(capsys, "--help")

    assert "cache:" in plain and "scheduler:" in plain
    assert "--swap-space" not in plain and "--enable-lora" not in plain
    everything = help_text(capsys, "--help=all")
    assert "--swap-space" in everything and "--enable-lora" in everything


def test_help_finds_groups_and_words(capsys: pytest.CaptureFixture[str]) -> None:
    group = help_text(capsys, "--help=Cache")
    assert "--block-size" in group and "--seed" not in group

    word = help_text(capsys, "--help=max_num")
    assert "--max-num-seqs" in word and "--seed" not in word

    assert "Did you mean" in help_text(capsys, "--help=max-num-sequs")
    assert help_text(capsys, "--help=CacheConfig") == group

    groups = help_text(capsys, "--help=listgroup")
    assert "cache " in groups and "scheduler " in groups and "--" not in groups.split("\n", 1)[1]


def test_help_names_a_switch_and_a_value_once() -> None:
    parser = FlexibleArgumentParser()
    parser.add_argument("--on", action=argparse.BooleanOptionalAction, help="x")
    parser.add_argument("--size", "--length", type=int, metavar="N", help="y")

    text = parser.format_help()
    assert "--on, --no-... " in text and "--size, --length N" in text


def test_a_search_before_a_command_says_where_to_search(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = FlexibleArgumentParser(prog="vllm")
    parser.add_subparsers(dest="command").add_parser("serve")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help=cache"])
    assert "`vllm serve --help=cache`" in capsys.readouterr().err


def test_arguments_of_an_application_pass_through() -> None:
    parser = make_parser()
    parser.add_argument("--mine", type=int)

    args = parser.parse_args(["--mine", "3", "--model", "m"])

    assert args.mine == 3
    assert AsyncEngineArgs.from_cli_args(args).model == "m"


def test_plain_parsers_can_have_the_flags_too() -> None:
    parser = argparse.ArgumentParser()
    EngineArgs.add_cli_args(parser)

    assert parser.parse_args(["--max-num-seqs", "3"]).max_num_seqs == 3


def test_subcommands_get_the_same_treatment(capsys: pytest.CaptureFixture[str]) -> None:
    parser = FlexibleArgumentParser(prog="vllm")
    serve = parser.add_subparsers(dest="command").add_parser("serve")
    EngineArgs.add_cli_args(serve)

    assert parser.parse_args(["serve", "--max_num_seqs", "3"]).max_num_seqs == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["serve", "--max-num-seq", "3"])
    assert "Did you mean --max-num-seqs?" in capsys.readouterr().err


def test_engine_args_are_a_dataclass_that_goes_back_into_itself() -> None:
    args = EngineArgs("some/model", max_model_len=5)

    assert EngineArgs(**dataclasses.asdict(args)) == args
    assert args != EngineArgs("some/model")


def test_importing_the_package_and_its_flags_does_not_import_torch() -> None:
    code = (
        "import sys, vllm, vllm.engine.arg_utils, vllm.utils; "
        "vllm.EngineArgs.add_cli_args(vllm.utils.FlexibleArgumentParser()); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
