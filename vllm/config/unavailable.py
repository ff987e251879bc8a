"""Flags of features that this engine lacks: the default is accepted, anything else refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from vllm.config.kinds import BOOL, FLOAT, INT, OBJECT, TEXT, TEXTS, Kind
from vllm.errors import ConfigError

FIXED_RANKS: Final = (
    "The ranks of an engine have fixed places for its life. Restart it with another "
    "--data-parallel-size, or let Ray Serve scale whole engines, as examples/deploy/ray_serve.py "
    "does"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """A flag of which only some values mean something here."""

    name: str
    kind: Kind
    default: Any = None
    allowed: tuple[Any, ...] = ()  # besides the default
    feature: str  # what is missing, as the subject of "... is not available"
    aliases: tuple[str, ...] = ()
    remedy: str = ""  # if leaving the flag out is not all there is to say
    is_coming: bool = True  # else the design has no place for it

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def help(self) -> str:
        shown = [str(value) for value in (self.default, *self.allowed) if value is not None]
        only = f" Only {' or '.join(shown)} is accepted." if self.allowed or shown else ""
        return f"Not available{' yet' * self.is_coming}: {self.feature}.{only}"

    def check(self, value: Any) -> None:
        """Raises ConfigError unless `value` asks for nothing."""
        if value is None or value == self.default or value in self.allowed:
            return
        if not value and not self.default:
            return
        try:
            if self.kind.take(value) in (self.default, *self.allowed):
                return
        except (TypeError, ValueError):
            pass  # of the wrong kind, and refused below in any case
        remedy = self.remedy or f"Leave {self.flag} out."
        missing = "not available yet in this build" if self.is_coming else "not available"
        raise ConfigError(f"{self.flag} {value}: {self.feature} is {missing}. {remedy}")


def _rows(feature: str, remedy: str = "", **flags: tuple[Kind, Any]) -> tuple[Unavailable, ...]:
    return tuple(
        Unavailable(name=name, kind=kind, default=default, feature=feature, remedy=remedy)
        for name, (kind, default) in flags.items()
    )


UNAVAILABLE: Final[tuple[Unavailable, ...]] = (
    Unavailable(
        name="task",
        kind=TEXT,
        default="auto",
        allowed=("generate",),
        feature="anything but generation (embedding, classification, scoring, transcription)",
    ),
    Unavailable(
        name="runner",
        kind=TEXT,
        default="auto",
        allowed=("generate",),
        feature="anything but generation (pooling, drafting)",
    ),
    Unavailable(
        name="convert",
        kind=TEXT,
        default="auto",
        allowed=("none",),
        feature="turning a model into one for pooling",
    ),
    Unavailable(
        name="config_format",
        kind=TEXT,
        default="auto",
        allowed=("hf",),
        feature="a model configuration other than config.json",
    ),
    *_rows(
        "the pooling of hidden states",
        override_pooler_config=(OBJECT, None),
        pooler_config=(OBJECT, None),
    ),
    *_rows(
        "quantization",
        "Use a checkpoint in float32, bfloat16 or float16, and leave the flag out.",
        quantization=(TEXT, None),
        calculate_kv_scales=(BOOL, False),
        kv_cache_dtype_skip_layers=(TEXTS, None),
        quantization_param_path=(TEXT, None),
        qlora_adapter_name_or_path=(TEXT, None),
        quantization_config=(OBJECT, None),
        allow_deprecated_quantization=(BOOL, False),
    ),
    *_rows(
        "LoRA",
        "Merge the adapter into the checkpoint, and leave the flag out.",
        enable_lora=(BOOL, False),
        enable_lora_bias=(BOOL, False),
        fully_sharded_loras=(BOOL, False),
        default_mm_loras=(OBJECT, None),
        lora_modules=(TEXTS, None),
    ),
    *_rows(
        "LoRA (this flag shapes it)",
        max_loras=(INT, 1),
        max_lora_rank=(INT, 16),
        max_cpu_loras=(INT, None),
        lora_extra_vocab_size=(INT, 256),
        lora_dtype=(TEXT, "auto"),
        long_lora_scaling_factors=(TEXTS, None),
        lora_target_modules=(TEXTS, None),
        enable_tower_connector_lora=(BOOL, False),
        specialize_active_lora=(BOOL, False),
    ),
    *_rows(
        "prompt adapters",
        enable_prompt_adapter=(BOOL, False),
        max_prompt_adapters=(INT, 1),
        max_prompt_adapter_token=(INT, 0),
    ),
    *_rows(
        "speculative decoding",
        speculative_config=(OBJECT, None),
        speculative_model=(TEXT, None),
        speculative_model_quantization=(TEXT, None),
        num_speculative_tokens=(INT, None),
        speculative_draft_tensor_parallel_size=(INT, None),
        speculative_max_model_len=(INT, None),
        speculative_disable_by_batch_size=(INT, None),
        speculative_disable_mqa_scorer=(BOOL, False),
        ngram_prompt_lookup_max=(INT, None),
        ngram_prompt_lookup_min=(INT, None),
        spec_decoding_acceptance_method=(TEXT, "rejection_sampler"),
        typical_acceptance_sampler_posterior_threshold=(FLOAT, None),
        typical_acceptance_sampler_posterior_alpha=(FLOAT, None),
        disable_logprobs_during_spec_decoding=(BOOL, None),
        spec_method=(TEXT, None),
        spec_model=(TEXT, None),
        spec_tokens=(INT, None),
    ),
    *_rows("logits processors that requests name", logits_processor_pattern=(TEXT, None)),
    *_rows(
        "input other than text",
        limit_mm_per_prompt=(OBJECT, None),
        mm_processor_kwargs=(OBJECT, None),
        media_io_kwargs=(OBJECT, None),
        allowed_local_media_path=(TEXT, ""),
        allowed_media_domains=(TEXTS, None),
        interleave_mm_strings=(BOOL, False),
        skip_mm_profiling=(BOOL, False),
        disable_mm_preprocessor_cache=(BOOL, False),
        mm_processor_cache_gb=(FLOAT, 4.0),
        mm_processor_cache_type=(TEXT, "lru"),
        mm_shm_cache_max_object_size_mb=(INT, 128),
        mm_encoder_only=(BOOL, False),
        mm_encoder_attn_backend=(TEXT, None),
        enable_mm_embeds=(BOOL, False),
        language_model_only=(BOOL, False),
        io_processor_plugin=(TEXT, None),
        mm_encoder_tp_mode=(TEXT, "weights"),
        enable_multimodal_encoder_data_parallel=(BOOL, False),
        video_pruning_rate=(FLOAT, None),
        enable_prompt_embeds=(BOOL, False),
    ),
    *_rows(
        "the transfer of KV cache between engines",
        kv_transfer_config=(OBJECT, None),
        kv_events_config=(OBJECT, None),
        ec_transfer_config=(OBJECT, None),
        kv_sharing_fast_prefill=(BOOL, False),
        kv_offloading_size=(FLOAT, None),
        kv_offloading_backend=(TEXT, None),
    ),
    *_rows(
        "dividing the tokens of one request over ranks (context parallelism)",
        "--tensor-parallel-size divides KV heads over ranks, and --pipeline-parallel-size layers. "
        "Leave the flag out.",
        decode_context_parallel_size=(INT, 1),
        prefill_context_parallel_size=(INT, 1),
    ),
    *_rows(
        "context parallelism (this flag shapes it)",
        dcp_kv_cache_interleave_size=(INT, 1),
        cp_kv_cache_interleave_size=(INT, 1),
    ),
    *_rows(
        "computing one half of a batch while tokens of the other travel to their experts",
        enable_dbo=(BOOL, False),
        ubatch_size=(INT, 0),
    ),
    *_rows(
        "computing a batch in halves (this flag shapes it)",
        dbo_decode_token_threshold=(INT, 32),
        dbo_prefill_token_threshold=(INT, 512),
    ),
    *_rows(
        "another choice of kernels for experts",
        "The device decides. Leave the flag out.",
        moe_backend=(TEXT, "auto"),
    ),
    *_rows(
        "telling which experts each token has chosen",
        enable_return_routed_experts=(BOOL, False),
    ),
    Unavailable(
        name="data_parallel_multi_port_external_lb",
        kind=BOOL,
        default=False,
        aliases=("-dpm",),
        feature="a server for every copy by one command",
        remedy="Start one for each with --data-parallel-rank and --port, or leave the flag out: "
        "one server balances over all copies.",
    ),
    *_rows(
        "holding back prompts so that copies compute them in the same steps",
        "Limit prompts with --max-num-batched-tokens, and leave the flag out.",
        prefill_schedule_interval=(INT, None),
    ),
    Unavailable(
        name="enable_elastic_ep",
        kind=BOOL,
        default=False,
        feature="changing the number of ranks of a running engine",
        remedy=f"{FIXED_RANKS}. Leave the flag out.",
        is_coming=False,
    ),
    *_rows(
        "a profiler of another vendor's devices",
        "VLLM_TORCH_PROFILER_DIR profiles every rank.",
        ray_workers_use_nsight=(BOOL, False),
    ),
    *_rows(
        "keeping part of the weights elsewhere",
        cpu_offload_gb=(FLOAT, 0.0),
        cpu_offload_params=(TEXTS, None),
        enable_sleep_mode=(BOOL, False),
    ),
    *_rows(
        "logits processors for every request",
        "Give them to single requests of LLM, in SamplingParams(logits_processors=...).",
        logits_processors=(TEXTS, None),
    ),
    *_rows(
        "replacing a part of the engine by a class",
        worker_cls=(TEXT, "auto"),
        worker_extension_cls=(TEXT, ""),
        scheduler_cls=(TEXT, ""),
    ),
    *_rows(
        "the compilation of models",
        compilation_config=(OBJECT, None),
        additional_config=(OBJECT, None),
        kernel_config=(OBJECT, None),
        optimization_level=(INT, None),
        cudagraph_capture_sizes=(TEXTS, None),
        max_cudagraph_capture_size=(INT, None),
        override_neuron_config=(OBJECT, None),
    ),
    *_rows(
        "special ways of loading",
        "Use --load-format auto, safetensors, pt or dummy.",
        model_loader_extra_config=(OBJECT, None),
        safetensors_load_strategy=(TEXT, "lazy"),
    ),
    *_rows(
        "a cache for state-space models",
        mamba_cache_dtype=(TEXT, "auto"),
        mamba_ssm_cache_dtype=(TEXT, "auto"),
        mamba_block_size=(INT, None),
        mamba_cache_mode=(TEXT, None),
    ),
    *_rows(
        "spans of a request's single steps",
        "--otlp-traces-endpoint sends one span per request, with the times of its phases.",
        collect_detailed_traces=(TEXTS, None),
    ),
    *_rows(
        "measuring inside a step",
        "/metrics has what is measured: see docs/observability.md.",
        kv_cache_metrics=(BOOL, False),
        kv_cache_metrics_sample=(FLOAT, 0.01),
        cudagraph_metrics=(BOOL, False),
        enable_mfu_metrics=(BOOL, False),
        enable_layerwise_nvtx_tracing=(BOOL, False),
        enable_logging_iteration_details=(BOOL, False),
    ),
    *_rows(
        "holding back prompts in favour of running requests",
        "Prompts are computed next to running requests: limit them with --max-num-batched-tokens.",
        scheduler_delay_factor=(FLOAT, 0.0),
        max_num_prefill_seqs=(INT, None),
        use_padding_aware_scheduling=(BOOL, False),
    ),
    *_rows(
        "another choice of attention kernels",
        attention_backend=(TEXT, None),
        attention_config=(OBJECT, None),
        override_attention_dtype=(TEXT, None),
    ),
    *_rows(
        "profiling",
        "Profile the process from outside.",
        profiler_config=(OBJECT, None),
    ),
    *_rows(
        "a separate projection for queries, keys and values",
        split_qkv=(BOOL, False),
    ),
    *_rows(
        "one pool of blocks per kind of attention layer",
        disable_hybrid_kv_cache_manager=(BOOL, False),
    ),
    Unavailable(
        name="preemption_mode",
        kind=TEXT,
        allowed=("recompute",),
        feature="any preemption but by recomputation",
        remedy="Use --preemption-mode recompute, or leave it out.",
    ),
)


def check_all(arguments: Mapping[str, Any]) -> None:
    for row in UNAVAILABLE:
        row.check(arguments[row.name])
