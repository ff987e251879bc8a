"""Settings that contradict each other."""

from __future__ import annotations

from vllm import envs
from vllm.config.expert_balance import ExpertBalanceConfig
from vllm.config.vllm import VllmConfig
from vllm.distributed.stages import divide
from vllm.errors import ConfigError
from vllm.expert_variables import BY_SHAPE, EXCHANGE
from vllm.logger import init_logger

logger = init_logger(__name__)


def cross_check(config: VllmConfig) -> None:
    """Raises ConfigError naming the flags to change."""
    _check_stages(config)
    _check_experts(config)
    _check_steps(config)
    _check_long_prompts(config)


def _check_stages(config: VllmConfig) -> None:
    """Before ranks are started, which would each find out for themselves."""
    num_stages = config.parallel.pipeline_parallel_size
    num_layers = getattr(config.model.hf_config, "num_hidden_layers", 0)
    if num_stages > 1 and num_layers:
        divide(num_layers, num_stages, envs.VLLM_PP_LAYER_PARTITION)


def _check_experts(config: VllmConfig) -> None:
    parallel = config.parallel
    placement = parallel.expert_placement_strategy
    if not parallel.enable_expert_parallel:
        if placement != "linear":
            logger.warning(
                "--expert-placement-strategy %s has no effect without --enable-expert-parallel.",
                placement,
            )
    elif not config.model.has_experts:
        logger.warning(
            "--enable-expert-parallel has no effect: %s has no experts.", config.model.architecture
        )
    _tell_dispatch(config)
    _check_balance(config)


def _tell_dispatch(config: VllmConfig) -> None:
    name, way = config.parallel.all2all_backend, config.parallel.expert_dispatch
    if way == BY_SHAPE:
        return
    if not config.spreads_experts:
        logger.warning_once(
            "--all2all-backend %s has no effect: no copies of the model share experts "
            "(--data-parallel-size, --enable-expert-parallel).",
            name,
        )
    elif way == EXCHANGE and config.expert_balance.enabled:
        logger.warning_once(
            "--all2all-backend %s: with --enable-eplb every rank sees all tokens, whose choices it "
            "counts.",
            name,
        )
    elif way == EXCHANGE:
        logger.warning_once(
            "--all2all-backend %s: that library is not used. Tokens go to the ranks that have "
            "their experts by this engine's own exchange.",
            name,
        )


def _check_balance(config: VllmConfig) -> None:
    parallel, redundant = config.parallel, config.expert_balance.num_redundant_experts
    if not config.expert_balance.enabled:
        if redundant:
            raise ConfigError(
                f"--num-redundant-experts {redundant}: copies of experts are placed, and moved, "
                "with --enable-eplb only. Give that too, or leave it out."
            )
        if config.expert_balance != ExpertBalanceConfig():
            logger.warning("--eplb-... has no effect without --enable-eplb.")
        return
    if not config.model.has_experts:
        raise ConfigError(
            f"--enable-eplb: {config.model.architecture} has no experts that could be balanced. "
            "Leave it out."
        )
    if not parallel.enable_expert_parallel:
        raise ConfigError(
            "--enable-eplb: without --enable-expert-parallel every rank has some of the width of "
            "all experts, and as much to compute as the others. Give that too, or leave it out."
        )
    if parallel.tensor_parallel_size * parallel.data_parallel_size == 1:
        raise ConfigError(
            "--enable-eplb: one rank has all experts of a layer, so that there is nothing to "
            "balance. Leave it out, or raise --tensor-parallel-size or --data-parallel-size."
        )


def _check_steps(config: VllmConfig) -> None:
    scheduler, longest = config.scheduler, config.model.max_model_len
    tokens = scheduler.max_num_batched_tokens
    if tokens < scheduler.max_num_seqs:
        raise ConfigError(
            f"--max-num-batched-tokens {tokens} is less than --max-num-seqs "
            f"{scheduler.max_num_seqs}: every running sequence takes one token of a step. Raise "
            "the first or lower the second."
        )
    if not scheduler.enable_chunked_prefill and tokens < longest:
        raise ConfigError(
            f"--max-num-batched-tokens {tokens} is less than --max-model-len {longest}: without "
            "chunked prefill a prompt is computed in one step. Raise the first, lower the second, "
            "or leave --no-enable-chunked-prefill out."
        )


def _check_long_prompts(config: VllmConfig) -> None:
    scheduler = config.scheduler
    if scheduler.max_long_partial_prefills > scheduler.max_num_partial_prefills:
        raise ConfigError(
            f"--max-long-partial-prefills {scheduler.max_long_partial_prefills} is more than "
            f"--max-num-partial-prefills {scheduler.max_num_partial_prefills}, of which they are a "
            "part. Raise the second or lower the first."
        )
    if not scheduler.enable_chunked_prefill and scheduler.long_prefill_token_threshold:
        raise ConfigError(
            f"--long-prefill-token-threshold {scheduler.long_prefill_token_threshold} needs "
            "chunked prefill. Leave it out, or leave --no-enable-chunked-prefill out."
        )
