"""How many processes compute one model, and how they are started."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.config.option import option


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    tensor_parallel_size: int = option(
        1, low=1, folded=True, aliases=("-tp",), help="Devices each layer is split over."
    )
    pipeline_parallel_size: int = option(
        1,
        low=1,
        folded=True,
        aliases=("-pp",),
        help="Stages the layers are spread over, each on its own devices. "
        "VLLM_PP_LAYER_PARTITION says how many layers each has.",
    )
    distributed_executor_backend: str = option(
        "",
        choices=("uni", "mp"),
        auto="uni for one rank, else mp",
        help="uni: the model runs in the engine's own process; mp: in worker processes.",
    )
    distributed_timeout_seconds: int = option(
        0,
        low=0,
        help="Seconds that a rank waits for another in what they compute together, once all have "
        "started. 0: as long as HCCL or gloo do, and the watchdog of steps lets it "
        "(VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS).",
    )
    cpu_distributed_timeout_seconds: int = option(
        0,
        low=0,
        help="The same of what ranks exchange on the host. 0: --distributed-timeout-seconds.",
    )

    @property
    def host_timeout_seconds(self) -> int:
        """Seconds that a rank waits for another on the host; 0: as long as gloo does."""
        return self.cpu_distributed_timeout_seconds or self.distributed_timeout_seconds

    @property
    def world_size(self) -> int:
        """Ranks that compute one copy of the model."""
        return self.tensor_parallel_size * self.pipeline_parallel_size
