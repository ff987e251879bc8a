"""Resolving: what is automatic is decided, and what cannot be is refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.config.platform import FactsOnly
from tests.conftest import LogLines
from vllm.config.digest import digests
from vllm.config.vllm import VllmConfig, all_settings, described
from vllm.engine.arg_utils import EngineArgs
from vllm.errors import ConfigError, LoadError
from vllm.executor import make_executor

Settle = Callable[..., VllmConfig]
Directory = Callable[..., Path]


def test_nothing_is_left_to_be_decided(settle: Settle) -> None:
    config = settle()

    for part in dataclasses.fields(config):
        group = getattr(config, part.name)
        for field in dataclasses.fields(group):
            assert getattr(group, field.name) is not None, field.name
    assert config.model.max_model_len == 4096
    assert config.model.dtype is torch.float32
    assert config.model.eos_token_ids == {7}
    assert config.model.architecture == "LlamaForCausalLM"
    assert config.model.served_model_name == (config.model.model,)
    assert config.cache.cache_dtype is torch.float32
    assert config.parallel.world_size == 1


def test_config_is_frozen_and_travels_to_a_worker(settle: Settle) -> None:
    config = settle(hf_overrides=lambda hf: hf)

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.cache.block_size = 32  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)).scheduler == config.scheduler


def test_the_platform_supplies_its_defaults(settle: Settle) -> None:
    platform = FactsOnly((torch.bfloat16, torch.float32), default_depth=2)

    config = settle(platform=platform)

    assert config.device.device == "facts"
    assert config.cache.block_size == 128
    assert config.scheduler.pipeline_depth == 2


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("auto", torch.float32),
        ("float", torch.float32),
        ("half", torch.float16),
        ("bfloat16", torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtype_may_be_a_name_or_a_torch_dtype(
    settle: Settle, asked: Any, expected: torch.dtype
) -> None:
    assert settle(dtype=asked).model.dtype is expected


def test_dtype_that_the_device_lacks_is_replaced_when_automatic_and_refused_when_asked_for(
    settle: Settle, directory: Directory
) -> None:
    platform = FactsOnly((torch.bfloat16,))
    path = str(directory(dtype="float16"))

    assert settle(platform=platform, model=path).model.dtype is torch.bfloat16
    with pytest.raises(ConfigError, match=r"--dtype half: device facts.*Choose bfloat16"):
        settle(platform=platform, model=path, dtype="half")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 4096),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 16384),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 8192),
        (
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 2048,
                }
            },
            8192,
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 1024,
                }
            },
            4096,
        ),
    ],
    ids=["plain", "linear", "dynamic", "yarn", "llama3"],
)
def test_longest_length_follows_the_rope_scaling(
    settle: Settle, directory: Directory, changes: dict[str, Any], expected: int
) -> None:
    assert settle(model=str(directory(**changes))).model.max_model_len == expected


def test_tokenizer_limit_counts_and_sliding_window_does_not(
    settle: Settle, directory: Directory
) -> None:
    files = {"tokenizer_config.json": {"model_max_length": 1000}}
    path = directory(
        files, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=256
    )

    assert settle(model=str(path)).model.max_model_len == 1000
    config = settle(model=str(path), disable_sliding_window=True)
    assert config.model.max_model_len == 256
    assert config.model.hf_config.sliding_window is None
    with pytest.raises(ConfigError, match="--disable-sliding-window"):
        settle(model=str(path), disable_sliding_window=True, max_model_len=500)


def test_more_than_the_model_can_do_needs_the_users_word(settle: Settle) -> None:
    with pytest.raises(ConfigError, match=r"--max-model-len 5000: .*4096"):
        settle(max_model_len=5000)

    allowed = settle({"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}, max_model_len=5000)
    assert allowed.model.max_model_len == 5000


def test_learned_positions_cannot_be_exceeded_at_all(settle: Settle, directory: Directory) -> None:
    path = directory(
        model_type="gpt_bigcode",
        architectures=["GPTBigCodeForCausalLM"],
        max_position_embeddings=None,
        n_positions=64,
    )

    with pytest.raises(ConfigError, match="embeddings for 64 positions"):
        settle({"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}, model=str(path), max_model_len=65)


def test_batched_tokens_suffice_for_the_longest_prompt_without_chunked_prefill(
    settle: Settle,
) -> None:
    assert settle().scheduler.max_num_batched_tokens == 2048
    assert settle(max_num_seqs=3000).scheduler.max_num_batched_tokens == 3000
    whole = settle(enable_chunked_prefill=False)
    assert whole.scheduler.max_num_batched_tokens == 4096


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_num_batched_tokens": 64}, "--max-num-seqs 128"),
        (
            {"max_num_batched_tokens": 512, "enable_chunked_prefill": False},
            "--max-model-len 4096",
        ),
        ({"max_long_partial_prefills": 2}, "--max-num-partial-prefills 1"),
        (
            {"long_prefill_token_threshold": 8, "enable_chunked_prefill": False},
            "--long-prefill-token-threshold 8",
        ),
        (
            {"tensor_parallel_size": 2, "distributed_executor_backend": "uni"},
            "--distributed-executor-backend uni runs one rank, and there are 2",
        ),
        ({"nnodes": 2}, "--nnodes 2 does not divide the 1 ranks"),
        ({"nnodes": 2, "tensor_parallel_size": 3}, "--nnodes 2 does not divide the 3 ranks"),
        ({"node_rank": 1}, "--node-rank 1: nodes are numbered from 0, and --nnodes is 1"),
        ({"headless": True}, "--headless: node 0 serves, and the others are headless"),
        (
            {"nnodes": 2, "tensor_parallel_size": 2, "node_rank": 1},
            "--node-rank 1: only node 0 serves.*--headless",
        ),
        ({"pipeline_parallel_size": 99}, "--pipeline-parallel-size 99: the model has "),
        (
            {"data_parallel_size": 2, "data_parallel_size_local": 3},
            "--data-parallel-size-local 3: --data-parallel-size is 2",
        ),
        ({"data_parallel_size_local": 0}, "--data-parallel-size-local 0: .* is 1"),
        (
            {"data_parallel_size": 2, "headless": True},
            "--headless: give --data-parallel-size-local",
        ),
        (
            {
                "data_parallel_size": 2,
                "headless": True,
                "data_parallel_size_local": 1,
                "data_parallel_hybrid_lb": True,
            },
            "--headless: .*Leave --data-parallel-hybrid-lb",
        ),
        (
            {"data_parallel_size": 2, "data_parallel_hybrid_lb": True},
            "--data-parallel-hybrid-lb: give --data-parallel-size-local",
        ),
        (
            {
                "data_parallel_size": 4,
                "data_parallel_size_local": 2,
                "data_parallel_start_rank": 3,
            },
            "--data-parallel-start-rank 3 --data-parallel-size-local 2: .* is 4",
        ),
        (
            {"data_parallel_size": 2, "data_parallel_external_lb": True},
            "--data-parallel-external-lb: give --data-parallel-rank",
        ),
        (
            {"data_parallel_size": 2, "data_parallel_rank": 2},
            "--data-parallel-rank 2: copies are numbered from 0",
        ),
        (
            {"data_parallel_size": 2, "data_parallel_rank": 1, "data_parallel_size_local": 2},
            "--data-parallel-rank 1 --data-parallel-size-local 2",
        ),
        (
            {"data_parallel_size": 2, "data_parallel_rank": 1, "data_parallel_start_rank": 2},
            "--data-parallel-rank 1 --data-parallel-start-rank 2: leave one",
        ),
        (
            {
                "data_parallel_size": 2,
                "data_parallel_rank": 1,
                "data_parallel_size_local": 1,
                "data_parallel_hybrid_lb": True,
            },
            "--data-parallel-hybrid-lb and --data-parallel-external-lb",
        ),
        (
            {"data_parallel_size": 2, "data_parallel_backend": "ray", "headless": True},
            "--data-parallel-backend ray --headless: one command starts the copies",
        ),
        (
            {"data_parallel_size": 2, "data_parallel_backend": "ray", "data_parallel_rank": 1},
            "--data-parallel-backend ray --data-parallel-external-lb",
        ),
        (
            {
                "data_parallel_size": 2,
                "data_parallel_backend": "ray",
                "data_parallel_size_local": 1,
                "data_parallel_hybrid_lb": True,
            },
            "--data-parallel-backend ray --data-parallel-hybrid-lb",
        ),
        ({"data_parallel_backend": "torch"}, "--data-parallel-backend 'torch': not one of mp, ray"),
        ({"all2all_backend": "nccl"}, "--all2all-backend 'nccl': not one of allgather"),
        ({"enable_elastic_ep": True}, "--enable-elastic-ep True: .*Restart it with another"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
        ({"device": "tpu"}, "--device tpu"),
        ({"distributed_executor_backend": "dask"}, "--distributed-executor-backend 'dask'"),
        ({"block_size": 17}, "--block-size 17: not one of 16, 32"),
        ({"max_num_seqs": 0}, "--max-num-seqs 0: must be at least 1"),
        ({"max_num_seqs": "many"}, "--max-num-seqs 'many': must be a whole number"),
        ({"max_num_seqs": True}, "--max-num-seqs True"),
        ({"gpu_memory_utilization": 1.5}, "--gpu-memory-utilization 1.5: must be at most 1"),
        ({"gpu_memory_utilization": float("nan")}, "--gpu-memory-utilization nan"),
        ({"dtype": "float8"}, "--dtype float8: not one of.*Did you mean float"),
        ({"scheduling_policy": "lifo"}, "--scheduling-policy 'lifo'"),
        ({"override_generation_config": {"temprature": 1}}, "Did you mean temperature"),
        ({"generation_config": "/nowhere"}, "--generation-config /nowhere"),
        ({"hf_overrides": [1]}, "--hf-overrides"),
        ({"load_format": "gguf"}, "--load-format 'gguf'"),
    ],
)
def test_what_cannot_be_is_refused_by_flag_and_value(
    settle: Settle, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        settle(**arguments)


def test_an_engine_is_started_on_node_0_alone(settle: Settle) -> None:
    config = settle(nnodes=2, tensor_parallel_size=2, node_rank=1, headless=True)
    with pytest.raises(ConfigError, match="--node-rank 1: the engine runs on node 0"):
        make_executor(config)


def test_nodes_may_differ_in_what_is_of_one_machine_alone(
    settle: Settle, directory: Directory, tmp_path: Path
) -> None:
    nodes = {"nnodes": 2, "tensor_parallel_size": 2}
    first = settle(**nodes)
    there = shutil.copytree(directory(), tmp_path / "elsewhere")
    other = settle(**nodes, model=str(there), node_rank=1, headless=True, disable_log_stats=True)
    assert digests(first) == digests(other)
    unequal = settle(tensor_parallel_size=2)
    assert digests(first)["parallel"] != digests(unequal)["parallel"]
    assert digests(first)["model"] != digests(settle(**nodes, seed=3))["model"]


def test_unknown_keyword_is_refused_with_the_closest_known() -> None:
    with pytest.raises(ConfigError, match="Did you mean max_model_len"):
        EngineArgs(model="m", max_model_length=3)
    with pytest.raises(ConfigError, match="Did you mean max_num_seqs"):
        EngineArgs(model="m").max_num_seq = 3


def test_overrides_reach_the_model_config(settle: Settle) -> None:
    config = settle(
        hf_overrides={"max_position_embeddings": 100},
        rope_theta=5.0,
        rope_scaling={
            "rope_type": "linear",
            "factor": 2.0,
        },
    )

    assert config.model.max_model_len == 200
    assert config.model.hf_config.rope_parameters["rope_theta"] == 5.0


def test_rope_overrides_work_on_configs_of_either_spelling(
    settle: Settle, directory: Directory
) -> None:
    path = directory(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})

    config = settle(model=str(path), hf_overrides={"rope_theta": 77.0})

    assert config.model.hf_config.rope_parameters["rope_theta"] == 77.0


def test_overrides_may_be_a_function(settle: Settle) -> None:
    def shorten(config: Any) -> Any:
        config.max_position_embeddings = 33
        return config

    assert settle(hf_overrides=shorten).model.max_model_len == 33
    with pytest.raises(ConfigError, match="must return"):
        settle(hf_overrides=lambda config: None)


def test_misspelt_override_is_pointed_out(settle: Settle, log_lines: LogLines) -> None:
    settle(hf_overrides={"max_position_embedings": 100})

    assert "Did you mean max_position_embeddings" in log_lines.text


def test_generation_config_gives_sampling_defaults_and_end_tokens(
    settle: Settle, directory: Directory
) -> None:
    stored = {"temperature": 0.6, "top_k": 5, "eos_token_id": [9, 10], "max_new_tokens": 8}
    path = str(directory({"generation_config.json": stored}))

    config = settle(model=path)
    assert config.model.default_sampling_params == {"temperature": 0.6, "top_k": 5, "max_tokens": 8}
    assert config.model.eos_token_ids == {7, 9, 10}

    config = settle(model=path, generation_config="vllm", override_generation_config={"top_p": 0.5})
    assert config.model.default_sampling_params == {"top_p": 0.5}
    assert config.model.eos_token_ids == {7, 9, 10}

    config = settle(model=path, override_generation_config={"temperature": 1.5})
    assert config.model.default_sampling_params["temperature"] == 1.5


def test_end_token_of_the_tokenizer_ends_besides_those_of_the_configs(
    settle: Settle, directory: Directory, tmp_path: Path
) -> None:
    generation = {"generation_config.json": {"eos_token_id": 9}}
    named = {
        "tokenizer_config.json": {"eos_token": {"content": "</s>"}},
        "tokenizer.json": {"added_tokens": [{"id": 3, "content": "</s>"}]},
    }
    other = tmp_path / "tokenizer"
    other.mkdir()
    (other / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    (other / "tokenizer.json").write_text('{"added_tokens": [{"id": 5, "content": "<|im_end|>"}]}')

    path = str(directory({**generation, **named}))
    assert settle(model=path).model.eos_token_ids == {3, 7, 9}
    assert settle(model=path, generation_config="vllm").model.eos_token_ids == {3, 7, 9}
    assert settle(model=path, skip_tokenizer_init=True).model.eos_token_ids == {3, 7, 9}
    assert settle(model=path, tokenizer=str(other)).model.eos_token_ids == {5, 7, 9}
    overridden = settle(model=path, override_generation_config={"eos_token_id": 8})
    assert overridden.model.eos_token_ids == {3, 7, 8}

    path = str(directory(named, eos_token_id=None))
    (tmp_path / "generation_config.json").unlink()
    assert settle(model=path).model.eos_token_ids == {3}


def test_dtype_of_a_silent_config_is_that_of_the_weights(
    settle: Settle, directory: Directory
) -> None:
    from safetensors.torch import save_file

    path = directory(dtype=None)
    save_file({"w": torch.zeros(2, dtype=torch.bfloat16)}, path / "model.safetensors")

    assert settle(model=str(path)).model.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": "{"}, "not valid JSON"),
        ({"config.json": "[]"}, "holds list"),
        ({"config.json": {"model_type": "lama"}}, "model_type 'lama'. Did you mean llama"),
        ({"config.json": {"model_type": "llama", "hidden_size": "x"}}, "config.json"),
        ({"generation_config.json": "?"}, "generation_config.json is not valid JSON"),
    ],
)
def test_broken_checkpoint_is_named_with_the_reason(
    settle: Settle, directory: Directory, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoadError, match=message):
        settle(model=str(directory(files)))


def test_code_of_a_checkpoint_runs_only_when_trusted(settle: Settle, directory: Directory) -> None:
    path = directory(model_type="own", auto_map={"AutoConfig": "own.Own"})

    with pytest.raises(ConfigError, match="--trust-remote-code"):
        settle(model=str(path))


def test_directory_without_config_is_no_checkpoint(settle: Settle, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has no config.json"):
        settle(model=str(tmp_path))
    with pytest.raises(ConfigError, match=r"--model is missing"):
        settle(model="")
    with pytest.raises(ConfigError, match="there is no such directory"):
        settle(model="/no/such/place")


def test_hub_name_without_network_fails_at_once_and_explains_itself(
    settle: Settle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LoadError, match=r"--model org/name: .*HF_HUB_OFFLINE.*local directory"):
        settle(model="org/name", download_dir=str(tmp_path))

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LoadError, match=r"--model org/name: .*cannot be reached"):
        settle(model="org/name", download_dir=str(tmp_path))


def test_none_is_as_if_nothing_was_said(settle: Settle, directory: Directory) -> None:
    plain = settle()
    names = (set(EngineArgs().values()) - {"model"}) & {s.name for s in all_settings()}

    assert settle(**dict.fromkeys(names)).scheduler == plain.scheduler
    assert settle(model=directory()).model.path == plain.model.path


def test_vocabulary_size_must_be_stated(settle: Settle, directory: Directory) -> None:
    with pytest.raises(LoadError, match="vocab_size"):
        settle(model=str(directory(vocab_size=0)))


def test_misspelt_variable_is_pointed_out(settle: Settle, log_lines: LogLines) -> None:
    settle({"VLLM_CPU_KV_CACHE_SPACE": "4"})

    assert "Did you mean VLLM_CPU_KVCACHE_SPACE?" in log_lines.text


def test_secrets_are_not_shown(settle: Settle) -> None:
    assert "hf_secret" not in repr(settle(hf_token="hf_secret"))
    assert "hf_secret" not in repr(EngineArgs(hf_token="hf_secret"))


def test_cache_space_of_the_environment_is_folded_in_unless_the_flag_is_given(
    settle: Settle,
) -> None:
    env = {"VLLM_CPU_KVCACHE_SPACE": "0.5"}

    assert settle(env).cache.kv_cache_memory_bytes == 2**29
    assert settle(env, kv_cache_memory_bytes="1M").cache.kv_cache_memory_bytes == 2**20
    assert settle(env, platform=FactsOnly()).cache.kv_cache_memory_bytes == 0


@pytest.mark.parametrize("steps", [0, -1, 1000])
def test_scheduler_steps_out_of_range_are_refused_by_their_own_name(
    tiny_story: Path, steps: int
) -> None:
    with pytest.raises(ConfigError, match=rf"--num-scheduler-steps {steps}: must be 1 to 64"):
        EngineArgs(model=str(tiny_story), num_scheduler_steps=steps).create_engine_config()


def test_a_configuration_can_be_shown_as_json_without_secrets(settle: Settle) -> None:
    shown = described(settle(hf_token="hf_secret", override_generation_config={"top_k": 3}))

    assert json.loads(json.dumps(shown)) == shown
    assert shown["scheduler"]["max_num_seqs"] > 0
    assert shown["model"]["dtype"] == "torch.float32"
    assert shown["model"]["eos_token_ids"] == [7]
    assert "hf_secret" not in json.dumps(shown)
