import argparse
import json
import socket
import subprocess
import sys

import pytest

from tests.limits import HANG_S
from vllm.entrypoints.cli.main import COMMANDS, main
from vllm.entrypoints.openai.cli_args import add_server_flags, server_options
from vllm.entrypoints.openai.server_options import server_settings
from vllm.errors import ConfigError
from vllm.utils.argparse import FlexibleArgumentParser
from vllm.version import __version__


def parse_server_flags(*words):
    parser = FlexibleArgumentParser()
    add_server_flags(parser)
    return server_options(parser.parse_args(words))


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


def test_version_is_shown(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


def test_an_unknown_command_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fly"])
    assert stop.value.code == 2
    assert "fly" in capsys.readouterr().err


def test_help_of_any_command_imports_neither_torch_nor_the_server():
    script = (
        "import sys; from vllm.entrypoints.cli.main import COMMANDS, main\n"
        "from vllm.entrypoints.cli.bench import BENCHMARKS\n"
        "for words in [[], *([c] for c in COMMANDS), *(['bench', b] for b in BENCHMARKS)]:\n"
        "    try: main([*words, '--help'])\n"
        "    except SystemExit: pass\n"
        "    heavy = {'torch', 'transformers', 'fastapi', 'uvicorn'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=HANG_S, capture_output=True)


def test_collect_env_hides_secrets(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "very-private")
    monkeypatch.setenv("VLLM_API_KEY", "very-private")
    monkeypatch.setenv("HTTP_PROXY", "http://me:very-private@proxy:80")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["collect-env"]) == 0
    text = capsys.readouterr().out
    assert "very-private" not in text
    titles = ("System", "Limits", "Packages", "torch", "Kernels", "Devices", "Environment")
    assert all(f"{title}\n---" in text for title in titles)
    found = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line.strip()}
    assert found["HF_TOKEN"] == "(hidden)" and found["OMP_NUM_THREADS"] == "1"
    assert found["HTTP_PROXY"] == "http://(hidden)@proxy:80"
    assert found["platform"] == "cpu"


def test_a_users_mistake_is_one_line_and_code_2(capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert main(["bench", "serve", "--port", str(port), "--num-prompts", "1"]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("vllm bench: the server cannot be used")
    assert "Traceback" not in message


def test_a_machine_without_a_server_has_no_servers_to_count(capsys):
    assert main(["serve", "model", "--headless", "--api-server-count", "2"]) == 2
    assert "--headless --api-server-count 2: this machine has no server" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--port", "70000"], ["--port", "x"], ["--uvicorn-log-level", "loud"]]
)
def test_a_wrong_server_flag_is_named_and_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_server_flags(*words)
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_a_wrong_server_setting_of_a_config_file_is_named():
    with pytest.raises(ConfigError, match="--port"):
        server_options(argparse.Namespace(port=70000))


def test_keys_and_origins_take_words_or_a_json_list(monkeypatch):
    assert parse_server_flags("--api-key", "a", "b").api_key == ("a", "b")
    assert parse_server_flags("--allowed-origins", '["x", "y"]').allowed_origins == ("x", "y")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert parse_server_flags().api_key == ("secret",)
    assert parse_server_flags("--api-key", "a").api_key == ("a",)


@pytest.mark.parametrize("key", ["", " ", "\t", "schl\u00fcssel", "a\n", " a", "a\x7f"])
def test_keys_that_no_client_could_send_are_refused(monkeypatch, tmp_path, key):
    for words in (("--api-key", key), ("--api-key", "good", key)):
        with pytest.raises(ConfigError, match=r"--api-key: (the key|key 2 of 2) "):
            parse_server_flags(*words)
    file = tmp_path / "flags.yaml"
    file.write_text(json.dumps({"api-key": key}))
    with pytest.raises(ConfigError, match="--api-key"):
        parse_server_flags("--config", str(file))
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(ConfigError, match="VLLM_API_KEY: the key "):
        parse_server_flags()
    assert parse_server_flags("--api-key", "good").api_key == ("good",)
    assert server_options(argparse.Namespace(), has_clients=False).api_key == ()


def test_every_server_setting_has_help():
    assert all(setting.help for setting in server_settings())
