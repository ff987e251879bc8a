"""What programs written for vLLM import and construct."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG_S
from vllm.utils.text import did_you_mean

NAMES = {
    "vllm.distributed": "cleanup_dist_env_and_memory",
    "vllm.engine.arg_utils": "AsyncEngineArgs EngineArgs",
    "vllm.engine.async_llm_engine": "AsyncLLMEngine",
    "vllm.engine.llm_engine": "LLMEngine",
    "vllm.engine.protocol": "EngineClient",
    "vllm.entrypoints.api_server": "init_app run_server",
    "vllm.entrypoints.llm": "LLM",
    "vllm.entrypoints.openai.api_server": "build_app",
    "vllm.entrypoints.openai.cli_args": "make_arg_parser validate_parsed_serve_args",
    "vllm.inputs": "PromptType TextPrompt TokensPrompt",
    "vllm.inputs.data": "TextPrompt TokensPrompt",
    "vllm.logger": "init_logger",
    "vllm.logprobs": "Logprob PromptLogprobs SampleLogprobs",
    "vllm.lora.request": "LoRARequest",
    "vllm.outputs": "CompletionOutput EmbeddingOutput EmbeddingRequestOutput PoolingOutput "
    "PoolingRequestOutput RequestOutput",
    "vllm.platforms": "current_platform",
    "vllm.pooling_params": "PoolingParams",
    "vllm.sampling_params": "BeamSearchParams RequestOutputKind SamplingParams",
    "vllm.sequence": "Logprob RequestMetrics",
    "vllm.transformers_utils.tokenizer": "get_tokenizer",
    "vllm.utils": "Counter FlexibleArgumentParser get_open_port random_uuid",
    "vllm.utils.argparse_utils": "FlexibleArgumentParser",
    "vllm.utils.network_utils": "get_open_port",
    "vllm.v1.engine.async_llm": "AsyncLLM",
    "vllm.v1.engine.llm_engine": "LLMEngine",
    "vllm.v1.engine.exceptions": "EngineDeadError EngineGenerateError",
    "vllm.v1.metrics.reader": "Counter Gauge Histogram Metric Vector",
    "vllm.version": "__version__",
}


@pytest.mark.parametrize("module", NAMES)
def test_names_are_where_programs_import_them(module: str) -> None:
    found = dir(importlib.import_module(module))
    assert [name for name in NAMES[module].split() if name not in found] == []


def test_counters_and_ids_are_never_given_out_twice() -> None:
    from vllm.utils import Counter, random_uuid

    counter = Counter(3)
    assert [next(counter), next(counter)] == [3, 4]
    counter.reset()
    assert next(counter) == 0
    assert len({random_uuid() for _ in range(100)}) == 100


def test_outputs_can_be_built_as_vllms() -> None:
    from vllm import CompletionOutput, RequestOutput

    choice = CompletionOutput(
        index=0,
        text="a",
        token_ids=[1],
        cumulative_logprob=None,
        logprobs=None,
        finish_reason="stop",
        stop_reason=None,
        lora_request=None,
    )
    output = RequestOutput(
        request_id="1",
        prompt="p",
        prompt_token_ids=[0],
        prompt_logprobs=None,
        outputs=[choice],
        finished=True,
        metrics=None,
        lora_request=None,
        encoder_prompt=None,
        encoder_prompt_token_ids=None,
        num_cached_tokens=3,
        kv_transfer_params=None,
    )
    assert output.outputs[0].finished()
    assert output.num_cached_tokens == 3


def test_fields_that_an_output_does_not_know_are_ignored() -> None:
    from vllm import RequestOutput

    output = RequestOutput(
        request_id="1",
        prompt="p",
        prompt_token_ids=[0],
        prompt_logprobs=None,
        outputs=[],
        finished=True,
        multi_modal_placeholders=None,
        of_a_release_to_come=3,
    )
    assert not hasattr(output, "of_a_release_to_come")
    assert RequestOutput("1", None, [0]).outputs is not RequestOutput("2", None, [0]).outputs


def test_times_of_a_request_go_by_all_their_names() -> None:
    from vllm.sequence import RequestMetrics

    times = RequestMetrics(1.0, 9.0, 2.0, 4.0, 1.0)
    assert (times.arrival_time, times.last_token_time) == (1.0, 9.0)
    assert (times.first_scheduled_time, times.first_token_time) == (2.0, 4.0)
    assert (times.time_in_queue, times.finished_time, times.scheduler_time) == (1.0, None, None)
    assert times.first_token_latency == 3.0
    assert times.last_token_ts - times.first_token_ts == 5.0
    assert times.scheduled_ts - times.queued_ts == 1.0
    assert RequestMetrics(1.0).first_token_latency == 0.0


def test_the_platform_is_an_object_that_says_what_it_is() -> None:
    from vllm.platforms import Platform, current_platform, platform_of

    assert isinstance(current_platform, Platform)
    assert current_platform is platform_of()
    assert current_platform.is_cpu() and not current_platform.is_hpu()
    assert not any(
        (current_platform.is_cuda(), current_platform.is_rocm(), current_platform.is_tpu())
    )
    assert current_platform.device_type == current_platform.get_device_name() == "cpu"
    assert current_platform.get_device_total_memory() > 2**20
    assert current_platform.get_device_capability() is None
    with pytest.raises(ImportError):
        from vllm.platforms import no_such_platform  # type: ignore[attr-defined]  # noqa: F401


def test_a_port_that_is_open_can_be_listened_on() -> None:
    import socket

    from vllm.utils import get_open_port

    with socket.create_server(("127.0.0.1", get_open_port())):
        pass


def test_what_a_finished_engine_left_is_collected() -> None:
    import gc
    import weakref

    from vllm.distributed import cleanup_dist_env_and_memory

    class Ring:
        def __init__(self) -> None:
            self.self = self

    gone = weakref.ref(Ring())
    gc.freeze()  # as a start of an engine does
    cleanup_dist_env_and_memory()
    assert gone() is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--enable-auto-tool-choice"], "--enable-auto-tool-choice needs --tool-call-parser"),
        (["--tool-call-parser", "nosuch"], "nosuch"),
        (["--reasoning-parser", "nosuch"], "nosuch"),
        (["--chat-template", "/no/such/file"], "--chat-template /no/such/file"),
        (["--middleware", "no.such.thing"], "no.such.thing"),
        (["--ssl-keyfile", "/no/such.pem"], "ssl"),
        (["--enable-lora"], "--enable-lora"),
    ],
)
def test_flags_that_cannot_work_are_found_before_a_model_is_looked_at(
    flags: list[str], message: str
) -> None:
    from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.errors import ConfigError
    from vllm.utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    with pytest.raises(ConfigError, match=message):
        validate_parsed_serve_args(parser.parse_args(flags))
    args = parser.parse_args([])
    validate_parsed_serve_args(args)
    args.max_num_seqs = 0  # by a program
    with pytest.raises(ConfigError, match="--max-num-seqs 0"):
        validate_parsed_serve_args(args)


def test_a_hint_is_a_near_miss_or_none() -> None:
    flags = ["--max-model-len", "--mamba-block-size", "--chat-template", "--dtype"]
    assert did_you_mean("--max-model-length", flags) == " Did you mean --max-model-len?"
    assert did_you_mean("--num-blocks", flags) == ""
    assert did_you_mean("--compile", flags) == ""


def test_a_program_that_starts_an_engine_on_import_is_told_to_guard_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from vllm.engine.client import ProcessClient\nProcessClient(None, print)\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False, timeout=HANG_S
    )
    assert done.returncode == 1
    assert "if __name__ == '__main__':" in done.stderr
    assert done.stderr.count("Traceback") == 1, done.stderr
