"""Signatures of vLLM 0.11's public Python: names, order and defaults of parameters, no types.

`...` is a default that is an object of vLLM's own.
"""

from __future__ import annotations

SIGNATURES: dict[str, str] = {
    # -- offline
    "vllm.LLM.generate": "prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, "
    "priority=None",
    "vllm.LLM.chat": "messages, sampling_params=None, use_tqdm=True, lora_request=None, "
    "chat_template=None, chat_template_content_format='auto', add_generation_prompt=True, "
    "continue_final_message=False, tools=None, chat_template_kwargs=None, mm_processor_kwargs=None",
    "vllm.LLM.beam_search": "prompts, params, lora_request=None, use_tqdm=False, "
    "concurrency_limit=None",
    "vllm.LLM.collective_rpc": "method, timeout=None, args=(), kwargs=None",
    "vllm.LLM.apply_model": "func",
    "vllm.LLM.get_tokenizer": "",
    "vllm.LLM.set_tokenizer": "tokenizer",
    "vllm.LLM.get_default_sampling_params": "",
    "vllm.LLM.get_metrics": "",
    "vllm.LLM.start_profile": "",
    "vllm.LLM.stop_profile": "",
    "vllm.LLM.reset_prefix_cache": "device=None",
    "vllm.LLM.sleep": "level=1",
    "vllm.LLM.wake_up": "tags=None",
    "vllm.LLM.encode": "prompts, pooling_params=None, *, truncate_prompt_tokens=None, "
    "use_tqdm=True, lora_request=None, pooling_task='encode', tokenization_kwargs=None",
    "vllm.LLM.embed": "prompts, *, truncate_prompt_tokens=None, use_tqdm=True, "
    "pooling_params=None, lora_request=None",
    # -- engines
    "vllm.engine.llm_engine.LLMEngine.from_engine_args": "engine_args, usage_context=..., "
    "stat_loggers=None, enable_multiprocessing=False",
    "vllm.engine.llm_engine.LLMEngine.add_request": "request_id, prompt, params, "
    "arrival_time=None, lora_request=None, tokenization_kwargs=None, trace_headers=None, "
    "priority=0, prompt_text=None",
    "vllm.engine.llm_engine.LLMEngine.abort_request": "request_ids",
    "vllm.engine.llm_engine.LLMEngine.step": "",
    "vllm.engine.llm_engine.LLMEngine.has_unfinished_requests": "",
    "vllm.engine.llm_engine.LLMEngine.get_num_unfinished_requests": "",
    "vllm.engine.llm_engine.LLMEngine.collective_rpc": "method, timeout=None, args=(), kwargs=None",
    "vllm.engine.llm_engine.LLMEngine.apply_model": "func",
    "vllm.engine.llm_engine.LLMEngine.reset_prefix_cache": "device=None",
    "vllm.engine.llm_engine.LLMEngine.is_sleeping": "",
    "vllm.engine.llm_engine.LLMEngine.get_metrics": "",
    "vllm.engine.async_llm_engine.AsyncLLMEngine.from_engine_args": "engine_args, "
    "start_engine_loop=True, usage_context=..., stat_loggers=None",
    "vllm.engine.async_llm_engine.AsyncLLMEngine.generate": "prompt, sampling_params, request_id, "
    "*, prompt_text=None, lora_request=None, tokenization_kwargs=None, trace_headers=None, "
    "priority=0, data_parallel_rank=None",
    "vllm.engine.async_llm_engine.AsyncLLMEngine.add_request": "request_id, prompt, params, "
    "arrival_time=None, lora_request=None, tokenization_kwargs=None, trace_headers=None, "
    "priority=0, data_parallel_rank=None, prompt_text=None",
    "vllm.engine.async_llm_engine.AsyncLLMEngine.abort": "request_id",
    "vllm.engine.async_llm_engine.AsyncLLMEngine.collective_rpc": "method, timeout=None, args=(), "
    "kwargs=None",
    "vllm.engine.async_llm_engine.AsyncLLMEngine.reset_prefix_cache": "device=None",
    "vllm.engine.async_llm_engine.AsyncLLMEngine.sleep": "level=1",
    "vllm.engine.async_llm_engine.AsyncLLMEngine.wake_up": "tags=None",
    "vllm.engine.async_llm_engine.AsyncLLMEngine.is_sleeping": "",
    "vllm.engine.async_llm_engine.AsyncLLMEngine.get_decoding_config": "",
    "vllm.engine.async_llm_engine.AsyncLLMEngine.get_tokenizer": "",
    "vllm.engine.async_llm_engine.AsyncLLMEngine.shutdown": "",
    "vllm.engine.protocol.EngineClient.generate": "prompt, sampling_params, request_id, *, "
    "prompt_text=None, lora_request=None, tokenization_kwargs=None, trace_headers=None, "
    "priority=0, data_parallel_rank=None",
    "vllm.engine.protocol.EngineClient.abort": "request_id",
    "vllm.engine.protocol.EngineClient.check_health": "",
    "vllm.engine.protocol.EngineClient.reset_prefix_cache": "device=None",
    "vllm.engine.protocol.EngineClient.is_sleeping": "",
    "vllm.engine.arg_utils.EngineArgs.create_engine_config": "usage_context=None, headless=False",
    "vllm.engine.arg_utils.EngineArgs.add_cli_args": "parser",
    "vllm.engine.arg_utils.EngineArgs.from_cli_args": "args",
    "vllm.engine.arg_utils.AsyncEngineArgs.add_cli_args": "parser, async_args_only=False",
    # -- servers
    "vllm.entrypoints.openai.cli_args.make_arg_parser": "parser",
    "vllm.entrypoints.openai.cli_args.validate_parsed_serve_args": "args",
    "vllm.entrypoints.api_server.init_app": "args, llm_engine=None",
    "vllm.entrypoints.api_server.run_server": "args, llm_engine=None",
    # -- parameters
    "vllm.SamplingParams": "*, n=1, best_of=None, presence_penalty=0.0, frequency_penalty=0.0, "
    "repetition_penalty=1.0, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=None, stop=None, "
    "stop_token_ids=None, ignore_eos=False, max_tokens=16, min_tokens=0, logprobs=None, "
    "prompt_logprobs=None, detokenize=True, skip_special_tokens=True, "
    "spaces_between_special_tokens=True, logits_processors=None, "
    "include_stop_str_in_output=False, truncate_prompt_tokens=None, output_kind=..., "
    "structured_outputs=None, guided_decoding=None, logit_bias=None, allowed_token_ids=None, "
    "extra_args=None, bad_words=None",
    "vllm.SamplingParams.clone": "",
    "vllm.sampling_params.BeamSearchParams": "beam_width, max_tokens, ignore_eos=False, "
    "temperature=0.0, length_penalty=1.0, include_stop_str_in_output=False",
    "vllm.sampling_params.StructuredOutputsParams": "*, json=None, regex=None, choice=None, "
    "grammar=None, json_object=None, disable_any_whitespace=False, "
    "disable_additional_properties=False, whitespace_pattern=None, structural_tag=None",
    "vllm.sampling_params.GuidedDecodingParams": "*, json=None, regex=None, choice=None, "
    "grammar=None, json_object=None, disable_any_whitespace=False, "
    "disable_additional_properties=False, whitespace_pattern=None, structural_tag=None",
    "vllm.pooling_params.PoolingParams": "truncate_prompt_tokens=None, dimensions=None, "
    "normalize=None, activation=None, softmax=None, step_tag_id=None, returned_token_ids=None, "
    "task=None, requires_token_ids=False, extra_kwargs=None, output_kind=...",
    # -- results
    "vllm.outputs.CompletionOutput": "index, text, token_ids, cumulative_logprob, logprobs, "
    "finish_reason=None, stop_reason=None, lora_request=None",
    "vllm.outputs.RequestOutput": "request_id, prompt, prompt_token_ids, prompt_logprobs, outputs, "
    "finished, metrics=None, lora_request=None, encoder_prompt=None, "
    "encoder_prompt_token_ids=None, num_cached_tokens=None, *, multi_modal_placeholders=None, "
    "kv_transfer_params=None, something_newer=None",
    "vllm.outputs.EmbeddingOutput": "embedding",
    "vllm.outputs.EmbeddingRequestOutput": "request_id, outputs, prompt_token_ids, finished",
    "vllm.outputs.PoolingOutput": "data",
    "vllm.outputs.PoolingRequestOutput": "request_id, outputs, prompt_token_ids, finished",
    "vllm.logprobs.Logprob": "logprob, rank=None, decoded_token=None",
    "vllm.sequence.Logprob": "logprob, rank=None, decoded_token=None",
    "vllm.sequence.RequestMetrics": "arrival_time, last_token_time, first_scheduled_time, "
    "first_token_time, time_in_queue, finished_time=None, scheduler_time=None, "
    "model_forward_time=None, model_execute_time=None",
    "vllm.v1.metrics.reader.Metric": "name, labels",
    "vllm.v1.metrics.reader.Counter": "name, labels, value",
    "vllm.v1.metrics.reader.Gauge": "name, labels, value",
    "vllm.v1.metrics.reader.Vector": "name, labels, values",
    "vllm.v1.metrics.reader.Histogram": "name, labels, count, sum, buckets",
    # -- the rest
    "vllm.inputs.TextPrompt": "*, prompt",
    "vllm.inputs.TokensPrompt": "*, prompt_token_ids",
    "vllm.inputs.data.TextPrompt": "*, prompt",
    "vllm.inputs.data.TokensPrompt": "*, prompt_token_ids",
    "vllm.logger.init_logger": "name",
    "vllm.transformers_utils.tokenizer.get_tokenizer": "tokenizer_name, *args, "
    "tokenizer_mode='auto', trust_remote_code=False, revision=None, download_dir=None, "
    "truncation_side='left'",
    "vllm.distributed.cleanup_dist_env_and_memory": "shutdown_ray=False",
    "vllm.utils.Counter": "start=0",
    "vllm.utils.get_open_port": "",
    "vllm.utils.random_uuid": "",
    "vllm.platforms.current_platform.is_cpu": "",
    "vllm.platforms.current_platform.is_hpu": "",
    "vllm.platforms.current_platform.is_cuda": "",
    "vllm.platforms.current_platform.is_cuda_alike": "",
    "vllm.platforms.current_platform.is_rocm": "",
    "vllm.platforms.current_platform.is_tpu": "",
    "vllm.platforms.current_platform.is_xpu": "",
    "vllm.platforms.current_platform.get_device_name": "device_id=0",
    "vllm.platforms.current_platform.get_device_total_memory": "device_id=0",
    "vllm.platforms.current_platform.get_device_capability": "device_id=0",
    "vllm.platforms.current_platform.is_pin_memory_available": "",
    "vllm.platforms.current_platform.seed_everything": "seed=None",
}

# Keywords of `LLM` and their defaults there.
LLM_KEYWORDS = """
    model, *, runner='auto', convert='auto', tokenizer=None, tokenizer_mode='auto',
    skip_tokenizer_init=False, trust_remote_code=False, allowed_local_media_path='',
    allowed_media_domains=None, tensor_parallel_size=1, dtype='auto', quantization=None,
    revision=None, tokenizer_revision=None, seed=None, gpu_memory_utilization=0.9, swap_space=4,
    cpu_offload_gb=0, enforce_eager=False, disable_custom_all_reduce=False, hf_token=None,
    hf_overrides=None, mm_processor_kwargs=None, pooler_config=None, override_pooler_config=None,
    structured_outputs_config=None, kv_cache_memory_bytes=None, compilation_config=None,
    logits_processors=None
"""

# Fields of EngineArgs, and those that AsyncEngineArgs adds.
ENGINE_ARGS = """
    model served_model_name tokenizer hf_config_path runner convert task skip_tokenizer_init
    enable_prompt_embeds tokenizer_mode trust_remote_code allowed_local_media_path
    allowed_media_domains download_dir safetensors_load_strategy load_format config_format dtype
    kv_cache_dtype seed max_model_len cuda_graph_sizes distributed_executor_backend
    pipeline_parallel_size tensor_parallel_size decode_context_parallel_size data_parallel_size
    data_parallel_rank data_parallel_start_rank data_parallel_size_local data_parallel_address
    data_parallel_rpc_port data_parallel_hybrid_lb data_parallel_backend enable_expert_parallel
    enable_dbo dbo_decode_token_threshold dbo_prefill_token_threshold eplb_config enable_eplb
    expert_placement_strategy num_redundant_experts eplb_window_size eplb_step_interval
    eplb_log_balancedness max_parallel_loading_workers block_size enable_prefix_caching
    prefix_caching_hash_algo disable_sliding_window disable_cascade_attn swap_space cpu_offload_gb
    gpu_memory_utilization kv_cache_memory_bytes max_num_batched_tokens max_num_partial_prefills
    max_long_partial_prefills long_prefill_token_threshold max_num_seqs max_logprobs logprobs_mode
    disable_log_stats revision code_revision rope_scaling rope_theta hf_token hf_overrides
    tokenizer_revision quantization enforce_eager disable_custom_all_reduce limit_mm_per_prompt
    interleave_mm_strings media_io_kwargs mm_processor_kwargs disable_mm_preprocessor_cache
    mm_processor_cache_gb mm_processor_cache_type mm_shm_cache_max_object_size_mb
    mm_encoder_tp_mode io_processor_plugin skip_mm_profiling video_pruning_rate enable_lora
    enable_lora_bias max_loras max_lora_rank default_mm_loras fully_sharded_loras max_cpu_loras
    lora_dtype lora_extra_vocab_size ray_workers_use_nsight num_gpu_blocks_override
    num_lookahead_slots model_loader_extra_config ignore_patterns enable_chunked_prefill
    disable_chunked_mm_input disable_hybrid_kv_cache_manager structured_outputs_config
    logits_processor_pattern speculative_config show_hidden_metrics_for_version
    otlp_traces_endpoint collect_detailed_traces disable_async_output_proc scheduling_policy
    scheduler_cls override_pooler_config pooler_config compilation_config worker_cls
    worker_extension_cls kv_transfer_config kv_events_config generation_config enable_sleep_mode
    override_generation_config model_impl override_attention_dtype calculate_kv_scales
    mamba_cache_dtype mamba_ssm_cache_dtype additional_config use_tqdm_on_load
    pt_load_map_location enable_multimodal_encoder_data_parallel logits_processors
    async_scheduling kv_sharing_fast_prefill enable_log_requests
""".split()
