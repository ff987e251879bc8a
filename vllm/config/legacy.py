"""Old flags and variables that mean a setting of today, or nothing any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vllm.config import expert_balance
from vllm.config.kinds import BOOL, FLOAT, INT, OBJECT, TEXT, TEXTS, Kind
from vllm.config.scheduler import MAX_DEPTH
from vllm.config.structured import settings_in
from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.logger import init_logger

logger = init_logger(__name__)

UNBOUNDED: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class DepthBound:
    """Pipeline depths an old flag leaves open."""

    low: int = 1
    high: int = UNBOUNDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Legacy:
    """An old flag. `to` is the setting it changes; none: it is accepted without effect.

    `via` makes the new value of the old: for `pipeline_depth` a DepthBound, for `hf_overrides` the
    keys to set. `neutral`: the old default, which asks for nothing.
    """

    name: str
    kind: Kind
    neutral: Any = None
    to: str = ""
    via: Callable[[Any], Any] = lambda value: value
    silent: bool = False  # asks for what is done anyway: nothing to warn of
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable that sets what a flag did not; only on `device` ("": on any)."""

    name: str
    to: str
    via: Callable[[Any], Any] = lambda value: value
    device: str = ""


def _at_least_two(on: bool) -> DepthBound:
    return DepthBound(low=2) if on else DepthBound(high=1)


def _exactly(depth: int, flag: str = "--num-scheduler-steps") -> DepthBound:
    if not 1 <= depth <= MAX_DEPTH:
        raise ConfigError(
            f"{flag} {depth}: must be 1 to {MAX_DEPTH}, the number of steps in flight."
        )
    return DepthBound(low=depth, high=depth)


def _synchronous(on: bool) -> DepthBound:
    return DepthBound(high=1) if on else DepthBound()


LEGACY: Final[tuple[Legacy, ...]] = (
    Legacy(
        name="async_scheduling",
        kind=BOOL,
        to="pipeline_depth",
        via=_at_least_two,
        help="--pipeline-depth of at least 2; --no-async-scheduling: of 1.",
    ),
    Legacy(
        name="disable_async_output_proc",
        kind=BOOL,
        neutral=False,
        to="pipeline_depth",
        via=_synchronous,
        help="--pipeline-depth 1.",
    ),
    Legacy(
        name="num_scheduler_steps",
        kind=INT,
        to="pipeline_depth",
        via=_exactly,
        help="--pipeline-depth of this many.",
    ),
    Legacy(
        name="num_scheduler_seqs",
        kind=INT,
        to="pipeline_depth",
        via=lambda depth: _exactly(depth, "--num-scheduler-seqs"),
        help="--num-scheduler-steps, as lists of features for Gaudi call it.",
    ),
    Legacy(
        name="multi_step_stream_outputs",
        kind=BOOL,
        neutral=True,
        to="stream_interval",
        help="false: --stream-interval of --num-scheduler-steps.",
    ),
    Legacy(
        name="rope_scaling",
        kind=OBJECT,
        to="hf_overrides",
        via=lambda value: {"rope_scaling": value},
        help='--hf-overrides {"rope_scaling": ...}.',
    ),
    Legacy(
        name="rope_theta",
        kind=FLOAT,
        to="hf_overrides",
        via=lambda value: {"rope_theta": value},
        help='--hf-overrides {"rope_theta": ...}.',
    ),
    Legacy(
        name="structured_outputs_config",
        kind=OBJECT,
        to="structured_outputs",
        via=settings_in,
        help="backend, disable_fallback, disable_any_whitespace and "
        "disable_additional_properties: each is --guided-decoding-... too.",
    ),
    Legacy(
        name="eplb_config",
        kind=OBJECT,
        to="expert_balance",
        via=expert_balance.settings_in,
        help="num_redundant_experts (--num-redundant-experts), and window_size, step_interval, "
        "log_balancedness and log_balancedness_interval: each is --eplb-... too. policy can be "
        "default only; use_async and communicator have no effect.",
    ),
    Legacy(
        name="disable_log_requests",
        kind=BOOL,
        neutral=False,
        silent=True,
        help="Requests are not logged unless --enable-log-requests says so.",
    ),
    Legacy(
        name="enable_log_deltas",
        kind=BOOL,
        neutral=True,
        help="--enable-log-outputs logs an output once, whole.",
    ),
    Legacy(
        name="disable_nccl_for_dp_synchronization",
        kind=BOOL,
        neutral=True,
        help="Copies of the model agree on the host, without NCCL.",
    ),
    Legacy(
        name="log_error_stack",
        kind=BOOL,
        neutral=False,
        silent=True,
        help="Errors of ours are always logged with their stack.",
    ),
    Legacy(
        name="disable_frontend_multiprocessing",
        kind=BOOL,
        neutral=False,
        help="The engine core of a server is always a process of its own.",
    ),
    Legacy(
        name="scheduler_reserve_full_isl",
        kind=BOOL,
        neutral=True,
        help="A request is admitted when all that is known of it fits the KV cache.",
    ),
    Legacy(
        name="enable_server_load_tracking",
        kind=BOOL,
        neutral=False,
        silent=True,
        help="/load always counts.",
    ),
    Legacy(
        name="swap_space",
        kind=FLOAT,
        neutral=4.0,
        help="Preempted requests are recomputed, never swapped out.",
    ),
    Legacy(
        name="use_v2_block_manager",
        kind=BOOL,
        neutral=True,
        help="There is one KV cache manager.",
    ),
    Legacy(
        name="num_lookahead_slots",
        kind=INT,
        neutral=0,
        help="Blocks for steps in flight are reserved as --pipeline-depth needs them.",
    ),
    Legacy(
        name="prefix_caching_hash_algo",
        kind=TEXT,
        help="Blocks are always hashed with BLAKE2b: nobody can construct a collision, at any "
        "speed.",
    ),
    Legacy(
        name="tokenizer_pool_size",
        kind=INT,
        neutral=0,
        help="Tokenizing runs in threads of the front end.",
    ),
    Legacy(
        name="tokenizer_pool_type",
        kind=TEXT,
        neutral="ray",
        help="Tokenizing runs in threads of the front end.",
    ),
    Legacy(
        name="tokenizer_pool_extra_config",
        kind=OBJECT,
        help="Tokenizing runs in threads of the front end.",
    ),
    Legacy(
        name="worker_use_ray",
        kind=BOOL,
        neutral=False,
        to="distributed_executor_backend",
        via=lambda on: "ray" if on else "",
        help="--distributed-executor-backend ray.",
    ),
    Legacy(
        name="engine_use_ray",
        kind=BOOL,
        neutral=False,
        help="The engine core of a server is a process of its own; --distributed-executor-backend "
        "ray places its ranks.",
    ),
    Legacy(
        name="dp_sync_interval",
        kind=INT,
        neutral=16,
        help="Copies that share experts agree in every step, and others never.",
    ),
    Legacy(
        name="disable_custom_all_reduce",
        kind=BOOL,
        neutral=False,
        help="There is one way to sum over ranks.",
    ),
    Legacy(
        name="max_parallel_loading_workers",
        kind=INT,
        help="Weights are mapped into memory, which needs no bound on workers.",
    ),
    Legacy(
        name="max_seq_len_to_capture",
        kind=INT,
        neutral=8192,
        help="What is captured is decided per device, and nothing is on the CPU.",
    ),
    Legacy(
        name="cuda_graph_sizes",
        kind=TEXTS,
        neutral=(),
        help="What is captured is decided per device, and nothing is on the CPU.",
    ),
    Legacy(
        name="disable_cascade_attn",
        kind=BOOL,
        neutral=False,
        help="There is no cascade attention to disable.",
    ),
    Legacy(
        name="disable_chunked_mm_input",
        kind=BOOL,
        neutral=False,
        help="Prompts are text, which may be cut anywhere.",
    ),
    Legacy(
        name="show_hidden_metrics_for_version",
        kind=TEXT,
        help="No metric is hidden.",
    ),
    Legacy(
        name="enable_reasoning",
        kind=BOOL,
        neutral=False,
        silent=True,
        help="--reasoning-parser is enough.",
    ),
    Legacy(
        name="pt_load_map_location",
        kind=TEXT,
        neutral="cpu",
        help="Weights pass through host memory whichever way they were saved.",
    ),
    Legacy(
        name="weights_load_device",
        kind=TEXT,
        help="Weights go to their device one tensor at a time.",
    ),
)

VARIABLES: Final[tuple[Variable, ...]] = (
    Variable(name="VLLM_DELAYED_SAMPLING", to="pipeline_depth", via=_at_least_two),
    Variable(
        name="VLLM_CPU_KVCACHE_SPACE",
        to="kv_cache_memory_bytes",
        via=lambda gibibytes: int(gibibytes * 2**30),
        device="cpu",
    ),
    Variable(name="VLLM_ALL2ALL_BACKEND", to="all2all_backend"),
)


def given(arguments: Mapping[str, Any]) -> dict[Legacy, Any]:
    """The old flags that ask for something, with their checked values. Raises ConfigError."""
    found = {}
    for row in LEGACY:
        value = arguments[row.name]
        if value is None or value == row.neutral:
            continue
        try:
            found[row] = row.kind.take(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{row.flag} {value!r}: must be {row.kind.name}.") from None
    return found


def fold(
    values: dict[str, Any], arguments: Mapping[str, Any], env: Environment, device: str
) -> None:
    """Change `values` (of settings, by name) as old flags and variables say; depth: see `depth`."""
    old = given(arguments)
    for row, value in old.items():
        if row.to == "hf_overrides":
            if callable(values["hf_overrides"]):
                raise ConfigError(
                    f"{row.flag} and a function as hf_overrides: let the function set it."
                )
            values["hf_overrides"] = {**values["hf_overrides"], **row.via(value)}
        elif row.to in ("structured_outputs", "expert_balance"):
            values.update(row.via(value))
        elif row.to == "stream_interval":
            steps = arguments["num_scheduler_steps"] or arguments["num_scheduler_seqs"] or 1
            values["stream_interval"] = max(values["stream_interval"], int(steps))
        elif row.to == "distributed_executor_backend":
            values[row.to] = values[row.to] or row.via(value)
        elif not row.to and not row.silent:
            logger.warning_once("%s has no effect: %s", row.flag, row.help)
    for variable in VARIABLES:
        is_for_us = variable.device in ("", device) and variable.to != "pipeline_depth"
        if is_for_us and env.is_set(variable.name) and not values[variable.to]:
            values[variable.to] = variable.via(getattr(env, variable.name))
    for name in env.set_without_effect():
        logger.warning_once("%s: %s", name, env.describe(name))


def depth(
    asked: int | None, stages: int, arguments: Mapping[str, Any], env: Environment, default: int
) -> int:
    """Steps in flight: what --pipeline-depth says, else the nearest to `default` all others allow.

    Raises ConfigError if no depth satisfies every flag.
    """
    bounds = [
        (f"{row.flag} {value}", row.via(value))
        for row, value in given(arguments).items()
        if row.to == "pipeline_depth"
    ]
    for variable in VARIABLES:
        if variable.to == "pipeline_depth" and env.is_set(variable.name):
            value = getattr(env, variable.name)
            bounds.append((f"{variable.name}={value}", variable.via(value)))
    if asked is not None:
        bounds.append((f"--pipeline-depth {asked}", _exactly(asked)))
    if stages > 1:
        bounds.append((f"--pipeline-parallel-size {stages}", DepthBound(low=stages)))
    low = max((bound.low for _, bound in bounds), default=1)
    high = min((bound.high for _, bound in bounds), default=UNBOUNDED)
    if low > high:
        said = " and ".join(text for text, _ in bounds)
        raise ConfigError(f"{said} ask for different pipeline depths. Keep one of them.")
    return min(max(default, low), high)
