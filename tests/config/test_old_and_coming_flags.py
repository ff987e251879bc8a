"""Flags of other times: mapped, accepted without effect, or refused until their feature exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.config.platform import FactsOnly
from tests.conftest import LogLines
from vllm.config import legacy
from vllm.config.legacy import LEGACY
from vllm.config.unavailable import UNAVAILABLE
from vllm.config.vllm import VllmConfig, all_settings
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.openai.server_options import server_settings
from vllm.envs import Environment
from vllm.errors import ConfigError

Settle = Callable[..., VllmConfig]

# Keywords of EngineArgs in vLLM and in its fork for Gaudi.
KNOWN_ELSEWHERE = """
    additional_config allowed_local_media_path async_scheduling block_size calculate_kv_scales
    code_revision collect_detailed_traces compilation_config config_format convert cpu_offload_gb
    cuda_graph_sizes data_parallel_address data_parallel_backend data_parallel_hybrid_lb
    data_parallel_rank data_parallel_rpc_port data_parallel_size data_parallel_size_local
    data_parallel_start_rank decode_context_parallel_size device disable_async_output_proc
    disable_cascade_attn disable_chunked_mm_input disable_custom_all_reduce
    disable_hybrid_kv_cache_manager disable_log_requests disable_log_stats
    disable_logprobs_during_spec_decoding disable_mm_preprocessor_cache disable_sliding_window
    distributed_executor_backend download_dir dtype enable_chunked_prefill enable_dbo enable_eplb
    enable_expert_parallel enable_log_requests enable_lora enable_lora_bias
    enable_multimodal_encoder_data_parallel enable_prefix_caching enable_prompt_adapter
    enable_prompt_embeds enable_reasoning enable_sleep_mode enforce_eager engine_use_ray
    fully_sharded_loras generation_config gpu_memory_utilization guided_decoding_backend
    guided_decoding_disable_additional_properties guided_decoding_disable_any_whitespace
    guided_decoding_disable_fallback hf_config_path hf_overrides hf_token ignore_patterns
    interleave_mm_strings kv_cache_dtype kv_cache_memory_bytes kv_events_config
    kv_sharing_fast_prefill kv_transfer_config limit_mm_per_prompt load_format
    logits_processor_pattern logits_processors logprobs_mode long_lora_scaling_factors
    long_prefill_token_threshold lora_dtype lora_extra_vocab_size mamba_cache_dtype
    mamba_ssm_cache_dtype max_cpu_loras max_logprobs max_long_partial_prefills max_lora_rank
    max_loras max_model_len max_num_batched_tokens max_num_partial_prefills max_num_prefill_seqs
    max_num_seqs max_parallel_loading_workers max_prompt_adapter_token max_prompt_adapters
    max_seq_len_to_capture media_io_kwargs mm_encoder_tp_mode mm_processor_cache_gb
    mm_processor_cache_type mm_processor_kwargs model model_impl model_loader_extra_config
    multi_step_stream_outputs ngram_prompt_lookup_max ngram_prompt_lookup_min
    num_gpu_blocks_override
    num_lookahead_slots num_redundant_experts num_scheduler_steps num_speculative_tokens
    otlp_traces_endpoint override_generation_config override_neuron_config override_pooler_config
    pipeline_parallel_size preemption_mode prefix_caching_hash_algo pt_load_map_location
    qlora_adapter_name_or_path quantization quantization_param_path ray_workers_use_nsight
    reasoning_parser revision rope_scaling rope_theta runner safetensors_load_strategy
    scheduler_cls scheduler_delay_factor scheduling_policy seed served_model_name
    show_hidden_metrics_for_version skip_mm_profiling skip_tokenizer_init
    spec_decoding_acceptance_method speculative_config speculative_disable_by_batch_size
    speculative_disable_mqa_scorer speculative_draft_tensor_parallel_size speculative_max_model_len
    speculative_model speculative_model_quantization split_qkv stream_interval
    structured_outputs_config swap_space task tensor_parallel_size tokenizer tokenizer_mode
    tokenizer_pool_extra_config tokenizer_pool_size tokenizer_pool_type tokenizer_revision
    trust_remote_code typical_acceptance_sampler_posterior_alpha
    typical_acceptance_sampler_posterior_threshold use_padding_aware_scheduling use_tqdm_on_load
    use_v2_block_manager video_pruning_rate weights_load_device worker_cls worker_extension_cls
    worker_use_ray
""".split()


def test_every_flag_of_vllm_and_its_gaudi_fork_exists() -> None:
    known = set(EngineArgs().values()) | {setting.name for setting in server_settings()}

    assert [name for name in KNOWN_ELSEWHERE if name not in known] == []


def test_no_flag_is_declared_twice() -> None:
    names = [row.name for row in (*all_settings(), *LEGACY, *UNAVAILABLE)]

    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("arguments", "env", "depth"),
    [
        ({}, {}, 2),
        ({"pipeline_depth": 3}, {}, 3),
        ({"async_scheduling": True}, {}, 2),
        ({"async_scheduling": True, "pipeline_depth": 4}, {}, 4),
        ({"async_scheduling": False}, {}, 1),
        ({"disable_async_output_proc": True}, {}, 1),
        ({"num_scheduler_steps": 8}, {}, 8),
        ({"num_scheduler_seqs": 8}, {}, 8),
        ({}, {"VLLM_DELAYED_SAMPLING": "true"}, 2),
        ({}, {"VLLM_DELAYED_SAMPLING": "false"}, 1),
    ],
)
def test_one_depth_replaces_the_old_pipelining_flags(
    settle: Settle, arguments: dict[str, Any], env: dict[str, str], depth: int
) -> None:
    config = settle(env, FactsOnly(default_depth=2), **arguments)

    assert config.scheduler.pipeline_depth == depth


def test_async_scheduling_deepens_a_device_that_is_synchronous_by_itself(settle: Settle) -> None:
    platform = FactsOnly(default_depth=1)

    assert settle(None, platform).scheduler.pipeline_depth == 1
    assert settle(None, platform, async_scheduling=True).scheduler.pipeline_depth == 2


def test_pipeline_stages_need_as_many_steps_in_flight() -> None:
    arguments = EngineArgs().values()
    env = Environment({})

    assert legacy.depth(None, 4, arguments, env, default=2) == 4
    with pytest.raises(ConfigError, match="--pipeline-parallel-size 4"):
        legacy.depth(2, 4, arguments, env, default=2)


def test_flags_that_ask_for_different_depths_are_named(settle: Settle) -> None:
    with pytest.raises(ConfigError, match=r"--num-scheduler-steps 4.*--pipeline-depth 2"):
        settle(num_scheduler_steps=4, pipeline_depth=2)
    with pytest.raises(ConfigError, match=r"--num-scheduler-steps 4.*--num-scheduler-seqs 2"):
        settle(num_scheduler_steps=4, num_scheduler_seqs=2)
    with pytest.raises(ConfigError, match=r"--num-scheduler-seqs 99: must be 1 to 64"):
        settle(num_scheduler_seqs=99)
    with pytest.raises(ConfigError, match=r"--async-scheduling True.*VLLM_DELAYED_SAMPLING=False"):
        settle({"VLLM_DELAYED_SAMPLING": "0"}, async_scheduling=True)


def test_unstreamed_multi_step_output_becomes_the_stream_interval(settle: Settle) -> None:
    config = settle(num_scheduler_steps=4, multi_step_stream_outputs=False)

    assert config.scheduler.stream_interval == 4
    assert settle(num_scheduler_steps=4).scheduler.stream_interval == 1
    config = settle(num_scheduler_seqs=3, multi_step_stream_outputs=False)
    assert config.scheduler.stream_interval == 3


@pytest.mark.parametrize("row", [r for r in LEGACY if not r.to], ids=lambda row: row.name)
def test_flag_without_effect_is_accepted_and_says_so_once(
    settle: Settle, log_lines: LogLines, row: legacy.Legacy
) -> None:
    values: dict[str, Any] = {
        "true or false": not row.neutral,
        "text": "x",
        "one or more words": ("1",),
        "a JSON object": {"x": 1},
    }
    value = values.get(row.kind.name, 3)

    settle(**{row.name: value})
    settle(**{row.name: value})

    assert log_lines.text.count(f"{row.flag} has no effect") == (0 if row.silent else 1)


@pytest.mark.parametrize("row", UNAVAILABLE, ids=lambda row: row.name)
def test_flag_of_a_missing_feature_is_refused_unless_it_asks_for_nothing(row: Any) -> None:
    values: dict[str, Any] = {
        "true or false": not row.default,
        "text": "x",
        "one or more words": ("1",),
        "a JSON object": {"x": 1},
    }

    row.check(row.default)
    for allowed in row.allowed:
        row.check(allowed)
    missing = "not available yet in this build" if row.is_coming else "not available"
    with pytest.raises(ConfigError, match=rf"{row.flag} .* is {missing}\."):
        row.check(values.get(row.kind.name, 77))


def test_refused_feature_reaches_the_user_through_every_door(settle: Settle) -> None:
    with pytest.raises(ConfigError, match=r"--quantization awq: quantization is not available"):
        settle(quantization="awq")


def test_variables_without_effect_say_so(settle: Settle, log_lines: LogLines) -> None:
    settle({"VLLM_USE_V1": "1", "VLLM_NO_USAGE_STATS": "1"})
    settle({"VLLM_USE_V1": "0"})

    assert log_lines.text.count("VLLM_USE_V1: Accepted without effect") == 1
