"""From what the user said to a configuration in which nothing is left to be decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from vllm.config import legacy, unavailable, unavailable_variables
from vllm.config.cache import CacheConfig
from vllm.config.checks import cross_check
from vllm.config.copies import decide_copies
from vllm.config.device import DeviceConfig
from vllm.config.draft import Draft
from vllm.config.expert_balance import ExpertBalanceConfig
from vllm.config.load import LoadConfig
from vllm.config.model import ModelConfig
from vllm.config.model_facts import DTYPES, resolve_model
from vllm.config.observability import ObservabilityConfig
from vllm.config.parallel import ParallelConfig
from vllm.config.ray_start import WITHOUT_RAY, RayStart
from vllm.config.scheduler import SchedulerConfig
from vllm.config.structured import StructuredOutputsConfig
from vllm.config.vllm import VllmConfig, all_settings
from vllm.distributed.launched import Launched
from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.expert_variables import BY_SHAPE
from vllm.logger import init_logger
from vllm.platforms import Platform, keep_recipes, platform_of
from vllm.utils.text import did_you_mean

if TYPE_CHECKING:
    import torch

logger = init_logger(__name__)

# A step reads all weights whatever its size. At 2048 tokens arithmetic has long taken over from
# that on any device, and a step still ends soon enough for the requests that generate next to it.
DEFAULT_BATCHED_TOKENS: Final = 2048


def resolve(
    arguments: Mapping[str, Any], env: Environment | None = None, platform: Platform | None = None
) -> VllmConfig:
    """Defaults, model facts, platform, cross checks; in this order, once.

    `arguments` are the fields of EngineArgs. `platform`: by default the one that they ask for.
    Raises ConfigError naming flag, value and remedy, or LoadError if the checkpoint is broken.
    """
    env = env or Environment()
    values = _checked(arguments, env)
    if values["recipe_cache"]:
        keep_recipes(values["recipe_cache"])
    if platform is None:
        asked = values["device"]
        platform = platform_of(env.VLLM_TARGET_DEVICE if asked == "auto" else asked)
    values["device"] = platform.name
    legacy.fold(values, arguments, env, platform.name)
    draft = Draft(values, arguments, env, platform.capabilities)
    parallel = _parallel(draft)
    model = resolve_model(draft)
    config = VllmConfig(
        model=model,
        cache=_cache(draft, model),
        scheduler=_scheduler(draft, model, parallel),
        parallel=parallel,
        device=DeviceConfig(**draft.of(DeviceConfig)),
        load=LoadConfig(**draft.of(LoadConfig)),
        structured_outputs=StructuredOutputsConfig(**draft.of(StructuredOutputsConfig)),
        observability=ObservabilityConfig(**draft.of(ObservabilityConfig)),
        expert_balance=ExpertBalanceConfig(**draft.of(ExpertBalanceConfig)),
    )
    config = platform.resolve(config)
    cross_check(config)
    return config


def _checked(arguments: Mapping[str, Any], env: Environment) -> dict[str, Any]:
    """The settings by their names, each checked by itself."""
    env.check()
    unavailable_variables.check_all(env)
    for name in sorted(set(env.unknown()) - unavailable_variables.NAMES):
        hint = did_you_mean(name, env.known())
        logger.warning_once("%s has no effect: there is no such variable.%s", name, hint)
    values = {s.name: s.check(arguments[s.name]) for s in all_settings()}
    unavailable.check_all(arguments)
    return values


def _parallel(draft: Draft) -> ParallelConfig:
    fields = draft.of(ParallelConfig)
    copies_here = fields["data_parallel_size_local"]
    decide_copies(fields)
    fields["all2all_backend"] = fields["all2all_backend"] or BY_SHAPE
    asked = fields["distributed_executor_backend"]
    config = ParallelConfig(**fields)
    if config.is_externally_launched:
        return _launched(config, Launched.read())
    if asked == "uni" and config.world_size > 1:
        raise ConfigError(
            f"--distributed-executor-backend uni runs one rank, and there are {config.world_size} "
            "(--tensor-parallel-size x --pipeline-parallel-size). Use mp, or leave it out."
        )
    _check_nodes(config)
    return replace(
        config,
        distributed_executor_backend=asked or ("mp" if config.world_size > 1 else "uni"),
        ray=_ray_start(config, draft.arguments, copies_here),
    )


def _ray_start(
    config: ParallelConfig, arguments: Mapping[str, Any], copies_here: int | None
) -> RayStart:
    from vllm.executor.ray_cluster.session import start_of

    if config.data_parallel_backend == "ray":
        flag = "--data-parallel-backend ray"
        return start_of(arguments, flag, -1 if copies_here is None else copies_here)
    if config.distributed_executor_backend != "ray":
        return WITHOUT_RAY
    if config.nnodes > 1:
        raise ConfigError(
            f"--nnodes {config.nnodes} --distributed-executor-backend ray: Ray knows its machines, "
            "and places the ranks by itself. Leave --nnodes out, or use mp."
        )
    return start_of(arguments)


def _launched(config: ParallelConfig, launched: Launched) -> ParallelConfig:
    """With the nodes that torchrun has started. Raises ConfigError."""
    flag = "--distributed-executor-backend external_launcher"
    if config.nnodes > 1 or config.node_rank or config.headless:
        raise ConfigError(
            f"{flag}: torchrun says how many nodes there are and which one this is. Leave out "
            "--nnodes, --node-rank and --headless, and give torchrun --nnodes and --node-rank."
        )
    if launched.world_size != config.world_size:
        raise ConfigError(
            f"{flag}: torchrun has started WORLD_SIZE={launched.world_size} processes, and there "
            f"are {config.world_size} ranks (--tensor-parallel-size x --pipeline-parallel-size). "
            f"Start as many as there are ranks: torchrun --nproc-per-node={config.world_size} on "
            "one machine."
        )
    return replace(
        config,
        nnodes=launched.num_nodes,
        node_rank=launched.node,
        master_addr=launched.host,
        master_port=launched.port,
    )


def _check_nodes(config: ParallelConfig) -> None:
    num_nodes, node = config.nnodes, config.node_rank
    if config.world_size % num_nodes:
        raise ConfigError(
            f"--nnodes {num_nodes} does not divide the {config.world_size} ranks "
            "(--tensor-parallel-size x --pipeline-parallel-size): every node runs as many."
        )
    if node >= num_nodes:
        raise ConfigError(
            f"--node-rank {node}: nodes are numbered from 0, and --nnodes is {num_nodes}."
        )
    if config.headless and not node and config.data_parallel_size == 1:
        raise ConfigError(
            "--headless: node 0 serves, and the others are headless. Leave it out here, or give "
            "--nnodes and --node-rank."
        )
    if node and not config.headless:
        raise ConfigError(
            f"--node-rank {node}: only node 0 serves. Start this node with "
            f"vllm serve ... --nnodes {num_nodes} --node-rank {node} --headless."
        )


def _cache(draft: Draft, model: ModelConfig) -> CacheConfig:
    fields = draft.of(CacheConfig)
    if fields["block_size"] is None:
        fields["block_size"] = draft.capabilities.default_block_size
    if fields["gpu_memory_utilization"] is None:
        fields["gpu_memory_utilization"] = draft.capabilities.default_memory_utilization
    fields["cache_dtype"] = _cache_dtype(fields["cache_dtype"], model)
    return CacheConfig(**fields)


def _cache_dtype(asked: Any, model: ModelConfig) -> torch.dtype:
    if asked == "auto" or DTYPES.get(asked, asked) == model.dtype:
        return model.dtype
    name = str(model.dtype).removeprefix("torch.")
    raise ConfigError(
        f"--kv-cache-dtype {asked}: a KV cache in another type than the model's, {name}, is not "
        "available yet in this build. Leave --kv-cache-dtype out."
    )


def _scheduler(draft: Draft, model: ModelConfig, parallel: ParallelConfig) -> SchedulerConfig:
    fields = draft.of(SchedulerConfig)
    if fields["max_num_batched_tokens"] is None:
        fields["max_num_batched_tokens"] = _batched_tokens(fields, model)
    if fields["pipeline_chunk_tokens"] is None:
        fields["pipeline_chunk_tokens"] = draft.capabilities.default_stage_tokens
    fields["pipeline_depth"] = legacy.depth(
        fields["pipeline_depth"],
        parallel.pipeline_parallel_size,
        draft.arguments,
        draft.env,
        default=draft.capabilities.default_depth,
    )
    return SchedulerConfig(**fields)


def _batched_tokens(fields: dict[str, Any], model: ModelConfig) -> int:
    tokens: int = max(DEFAULT_BATCHED_TOKENS, fields["max_num_seqs"])
    return tokens if fields["enable_chunked_prefill"] else max(tokens, model.max_model_len)
