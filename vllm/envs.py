"""The reader of the process environment: one typed table; `envs.VLLM_X` reads, parses and checks.

Values are read at every access, so a test may set a variable. Nothing on a hot path reads one:
`resolve` folds them into the configuration once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.copies_variables import COPIES_VARIABLES
from vllm.expert_variables import EXPERT_VARIABLES
from vllm.hpu_kernel_variables import HPU_KERNEL_VARIABLES
from vllm.hpu_variables import HPU_VARIABLES
from vllm.profiling_variables import PROFILING_VARIABLES
from vllm.ray_variables import RAY_VARIABLES
from vllm.variable import BOOLEAN, Variable, boolean, gibibytes, level, one_of, port, seconds

_SECRET = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_CREDENTIALS = re.compile(r"//[^/@\s]+@")


VARIABLES: tuple[Variable, ...] = (
    Variable(
        "VLLM_TARGET_DEVICE",
        "auto",
        one_of("auto", "cpu", "hpu", "cuda"),
        "auto, cpu, hpu or cuda",
        "Kind of device: what setup.py builds for (cpu unless set), and what --device auto stands "
        "for (auto: hpu where there is a Gaudi, else cpu).",
    ),
    Variable(
        "VLLM_CPU_KVCACHE_SPACE",
        0.0,
        gibibytes,
        "a number of GiB, 0 or more",
        "GiB of memory for the KV cache on the CPU; 0: what --gpu-memory-utilization leaves. "
        "--kv-cache-memory-bytes wins over it.",
    ),
    Variable(
        "VLLM_CPU_OMP_THREADS_BIND",
        "auto",
        str,
        "auto, nobind, or lists of cores such as 0-3|4-7",
        "Cores the threads of each CPU rank run on, ranks separated by |.",
    ),
    Variable(
        "VLLM_CPU_ISA",
        "auto",
        one_of("auto", "baseline", "avx2", "avx512", "avx512bf16", "amx", "bf16"),
        "auto, baseline, avx2, avx512, avx512bf16, amx or (on Arm) bf16",
        "Instruction set of the CPU kernels; auto: the best this machine has.",
    ),
    Variable(
        "VLLM_PP_LAYER_PARTITION",
        "",
        str,
        "numbers of layers, one per stage, separated by commas",
        "Layers of each stage under --pipeline-parallel-size, such as 14,14; empty: as many in "
        "each, and one more on stages before the last while some are left over.",
    ),
    Variable(
        "VLLM_LOGGING_LEVEL",
        "INFO",
        level,
        "DEBUG, INFO, WARNING, ERROR or CRITICAL",
        "Least severity that is logged.",
    ),
    Variable(
        "VLLM_CONFIGURE_LOGGING",
        True,
        boolean,
        BOOLEAN,
        "Set up logging of the `vllm` loggers; 0: leave it to the application.",
    ),
    Variable(
        "VLLM_DELAYED_SAMPLING",
        None,
        boolean,
        BOOLEAN,
        "1: --pipeline-depth of at least 2; 0: of 1. Unset: the device decides.",
    ),
    Variable(
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        False,
        boolean,
        BOOLEAN,
        "Run the engine of the `LLM` class in a process of its own. The server always does.",
    ),
    Variable(
        "VLLM_WORKER_MULTIPROC_METHOD",
        "spawn",
        one_of("spawn"),
        "spawn (a forked process inherits threads and locks in an unknown state)",
        "Checked only: worker processes are always spawned.",
        has_effect=False,
    ),
    Variable(
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN",
        False,
        boolean,
        BOOLEAN,
        "Allow a --max-model-len above what the checkpoint was made for; results may be poor.",
    ),
    Variable(
        "VLLM_API_KEY",
        "",
        str,
        "text",
        "Key that clients of the server must send; --api-key wins over it.",
    ),
    Variable(
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
        5,
        seconds,
        "a whole number of seconds, 1 or more",
        "Seconds that the server keeps an idle connection open.",
    ),
    Variable(
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
        False,
        boolean,
        BOOLEAN,
        "1: a server whose engine died goes on, answering 503. 0: it ends with exit code 1.",
    ),
    Variable(
        "VLLM_ALLOW_INSECURE_SERIALIZATION",
        False,
        boolean,
        BOOLEAN,
        "1: functions given to `collective_rpc` and `apply_model` may travel to an engine core or "
        "worker in another process, as pickles. 0: they need the model in this process.",
    ),
    Variable(
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS",
        300,
        seconds,
        "a whole number of seconds, 1 or more",
        "Seconds after which a step that not all ranks have answered ends the engine with an error "
        "that says what each does. Time in which a rank compiles or warms up does not count. Of "
        "engines with worker processes (several ranks, or --distributed-executor-backend mp).",
    ),
    Variable(
        "VLLM_ENGINE_READY_TIMEOUT_S",
        600,
        seconds,
        "a whole number of seconds, 1 or more",
        "Seconds after which a start whose ranks have not all loaded the model ends with an error "
        "that says what each does; warm-up does not count. Of engines with worker processes.",
    ),
    Variable(
        "VLLM_SERVER_DEV_MODE",
        False,
        boolean,
        BOOLEAN,
        "Offer the server's endpoints for development, such as /reset_prefix_cache.",
    ),
    Variable(
        "VLLM_ENABLE_RESPONSES_API_STORE",
        True,
        boolean,
        BOOLEAN,
        "Keep what /v1/responses answers, as many as there is room for; 0: nothing is kept.",
    ),
    Variable(
        "VLLM_HOST_IP",
        "",
        str,
        "an address",
        "Address of this machine, of its own to each of --nnodes or of a Ray cluster, at which "
        "ranks on other machines reach its ranks. Unset: the one with which it reaches node 0.",
    ),
    Variable(
        "VLLM_PORT",
        0,
        port,
        "a port, 1 to 65535",
        "Accepted without effect: processes of one engine talk over files, not ports. The server's "
        "port is --port.",
        has_effect=False,
    ),
    Variable(
        "VLLM_ENGINE_ITERATION_TIMEOUT_S",
        60,
        seconds,
        "a whole number of seconds, 1 or more",
        "Accepted without effect: VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS limits steps.",
        has_effect=False,
    ),
    Variable(
        "VLLM_RPC_TIMEOUT",
        10000,
        seconds,
        "a whole number of milliseconds, 1 or more",
        "Accepted without effect: VLLM_ENGINE_READY_TIMEOUT_S limits a start, "
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS steps.",
        has_effect=False,
    ),
    Variable(
        "VLLM_CACHE_ROOT",
        "",
        str,
        "a directory",
        "Accepted without effect: nothing is cached besides models, which HF_HOME places.",
        has_effect=False,
    ),
    Variable(
        "VLLM_USE_V1",
        None,
        boolean,
        BOOLEAN,
        "Accepted without effect: there is one engine.",
        has_effect=False,
    ),
    Variable(
        "VLLM_NO_USAGE_STATS",
        False,
        boolean,
        BOOLEAN,
        "Accepted without effect: no usage statistics are collected.",
        has_effect=False,
    ),
    Variable(
        "VLLM_DO_NOT_TRACK",
        False,
        boolean,
        BOOLEAN,
        "Accepted without effect: no usage statistics are collected.",
        has_effect=False,
    ),
    *RAY_VARIABLES,
    *COPIES_VARIABLES,
    *EXPERT_VARIABLES,
    *PROFILING_VARIABLES,
    *HPU_VARIABLES,
    *HPU_KERNEL_VARIABLES,
)

_TABLE = {variable.name: variable for variable in VARIABLES}


class Environment:
    """Typed view of a set of variables, by default those of the process.

    `environment.VLLM_X` as `envs.VLLM_X`; raises AttributeError for a name that is not declared.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ

    def __getattr__(self, name: str) -> Any:
        variable = _TABLE.get(name)
        if variable is None:
            raise AttributeError(f"no environment variable {name} is declared in vllm/envs.py")
        return variable.read(self._environ)

    def value(self, name: str) -> Any:
        """As the attribute of this name."""
        return _TABLE[name].read(self._environ)

    def is_set(self, name: str) -> bool:
        assert name in _TABLE, name
        return bool(self._environ.get(name, "").strip())

    def text(self, name: str) -> str:
        """What a variable that is not declared is set to; empty if it is not."""
        return self._environ.get(name, "").strip()

    def set_without_effect(self) -> list[str]:
        """Variables that are set, and accepted only for compatibility."""
        return [
            v.name
            for v in VARIABLES
            if not v.has_effect and self.is_set(v.name) and self.__getattr__(v.name) != v.default
        ]

    def describe(self, name: str) -> str:
        return _TABLE[name].help

    def check(self) -> None:
        """Raises ConfigError if any declared variable cannot be parsed."""
        for variable in VARIABLES:
            variable.read(self._environ)

    def known(self) -> list[str]:
        return sorted(_TABLE)

    def unknown(self) -> list[str]:
        """Variables named VLLM_* that nothing declares: probably misspelt, or another engine's."""
        return sorted(n for n in self._environ if n.startswith("VLLM_") and n not in _TABLE)


_PROCESS = Environment()


def inherited(name: str) -> str | None:
    """A variable of another program's making (NO_COLOR, OMP_NUM_THREADS); None if not set."""
    return os.environ.get(name)


def whole() -> dict[str, str]:
    """The whole environment, for a process that was started before it was complete."""
    return dict(os.environ)


def take_over(environment: Mapping[str, str]) -> None:
    """Change this process's environment to another's."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def shown(prefixes: tuple[str, ...]) -> dict[str, str]:
    """Variables whose names start so, for reports; what may be a secret is hidden."""
    return {
        name: "(hidden)" if _SECRET.search(name) else _CREDENTIALS.sub("//(hidden)@", value)
        for name, value in sorted(os.environ.items())
        if name.startswith(prefixes)
    }


def pass_on(name: str, value: str | None) -> None:
    """Set a variable for processes that are started from now on; None: unset it."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def limit_openmp_spinning() -> None:
    """Let idle OpenMP threads sleep soon, unless the user has set how long they spin.

    Must run before torch is imported. By default they spin for milliseconds, which slows a step
    down ten times and more as soon as another process wants the core (the server next to the
    engine core, on two cores). The price is that an idle machine wakes them for every op.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        return getattr(_PROCESS, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_TABLE])


if TYPE_CHECKING:
    VLLM_TARGET_DEVICE: str
    VLLM_CPU_KVCACHE_SPACE: float
    VLLM_CPU_OMP_THREADS_BIND: str
    VLLM_CPU_ISA: str
    VLLM_PP_LAYER_PARTITION: str
    VLLM_LOGGING_LEVEL: str
    VLLM_CONFIGURE_LOGGING: bool
    VLLM_DELAYED_SAMPLING: bool | None
    VLLM_ENABLE_V1_MULTIPROCESSING: bool
    VLLM_WORKER_MULTIPROC_METHOD: str
    VLLM_ALLOW_LONG_MAX_MODEL_LEN: bool
    VLLM_API_KEY: str
    VLLM_HTTP_TIMEOUT_KEEP_ALIVE: int
    VLLM_KEEP_ALIVE_ON_ENGINE_DEATH: bool
    VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS: int
    VLLM_ENGINE_READY_TIMEOUT_S: int
    VLLM_SERVER_DEV_MODE: bool
    VLLM_ENABLE_RESPONSES_API_STORE: bool
    VLLM_HOST_IP: str
    VLLM_PORT: int
    VLLM_DP_SIZE: int
    VLLM_DP_RANK: int
    VLLM_DP_MASTER_IP: str
    VLLM_DP_MASTER_PORT: int
    VLLM_RAY_PER_WORKER_GPUS: float
    VLLM_RAY_DP_PLACEMENT_NODE_IPS: str
    VLLM_ALL2ALL_BACKEND: str
    VLLM_RAY_BUNDLE_INDICES: str
    VLLM_RAY_EXTRA_ENV_VARS_TO_COPY: str
    VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY: str
    VLLM_CONFIG_ROOT: str
    VLLM_ENGINE_ITERATION_TIMEOUT_S: int
    VLLM_RPC_TIMEOUT: int
    VLLM_CACHE_ROOT: str
    VLLM_USE_V1: bool | None
    VLLM_NO_USAGE_STATS: bool
    VLLM_DO_NOT_TRACK: bool
    VLLM_TORCH_PROFILER_DIR: str
