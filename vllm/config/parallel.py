"""How many processes compute one model, and how they are started."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.config.kinds import INT, TEXT
from vllm.config.option import option
from vllm.config.ray_start import WITHOUT_RAY, RayStart
from vllm.distributed.place import NOT_SPREAD, SpreadExperts
from vllm.expert_variables import ALL2ALL_BACKENDS, BY_SHAPE, EXCHANGE, GATHER


def _named(way: str) -> str:
    return ", ".join(name for name, of in ALL2ALL_BACKENDS.items() if of == way)


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
    data_parallel_size: int = option(
        1,
        low=1,
        aliases=("-dp",),
        help="Copies of the model, each with ranks, a scheduler and a KV cache of its own. Limits "
        "such as --max-num-seqs are of each copy.",
    )
    data_parallel_size_local: int = option(
        None,
        kind=INT,
        low=0,
        aliases=("-dpl",),
        auto="all; with --data-parallel-backend ray as many as there is room for",
        local=True,
        help="Copies on this machine. Without --data-parallel-hybrid-lb the server waits for the "
        "other ones to come from machines that are started with --headless, or lets Ray place "
        "them.",
    )
    data_parallel_start_rank: int = option(
        0,
        low=0,
        aliases=("-dpr",),
        local=True,
        help="Number of this machine's first copy. Above 0 it implies --data-parallel-hybrid-lb, "
        "but with --headless.",
    )
    data_parallel_rank: int = option(
        None,
        kind=INT,
        low=0,
        aliases=("-dpn",),
        auto="--data-parallel-start-rank",
        local=True,
        help="Number of the only copy that this server has; something else balances over servers.",
    )
    data_parallel_backend: str = option(
        "mp",
        choices=("mp", "ray"),
        aliases=("-dpb",),
        local=True,
        help="What starts the copies. mp: the server those of its machine, and others are started "
        "with --headless; ray: the server all of them, on the machines of a Ray cluster that have "
        "room.",
    )
    data_parallel_address: str = option(
        None,
        kind=TEXT,
        aliases=("-dpa",),
        auto="127.0.0.1; with --data-parallel-backend ray VLLM_HOST_IP, or what Ray calls it",
        help="Address of the machine with the server, as machines with other copies of its model "
        "reach it; where copies of several servers share experts, of the one with copy 0.",
    )
    data_parallel_rpc_port: int = option(
        29550,
        low=1,
        high=65535,
        aliases=("-dpp",),
        help="TCP port of that machine at which the others meet it.",
    )
    data_parallel_hybrid_lb: bool = option(
        False,
        folded=True,
        local=True,
        aliases=("-dph",),
        help="Every machine has a server for its --data-parallel-size-local copies, and something "
        "else balances over machines.",
    )
    data_parallel_external_lb: bool = option(
        False,
        folded=True,
        local=True,
        aliases=("-dpe",),
        help="Every copy has a server, which --data-parallel-rank numbers.",
    )
    data_parallel_balance: str = option(
        "prefix-cache",
        choices=("prefix-cache", "least-loaded"),
        help="Which copy gets a request. prefix-cache: the one that would be done with its prompt "
        "first, for what it has to compute and what of the prompt it has cached; least-loaded: "
        "the one with the fewest requests.",
    )
    enable_expert_parallel: bool = option(
        False,
        aliases=("-ep",),
        help="Ranks that share a layer have whole experts each, instead of some of the width of "
        "every expert.",
    )
    expert_placement_strategy: str = option(
        "linear",
        choices=("linear", "round_robin"),
        help="Which experts a rank has with --enable-expert-parallel. linear: neighbours, the "
        "first ranks one more if they do not divide; round_robin: every expert goes to the next "
        "rank.",
    )
    all2all_backend: str = option(
        "",
        choices=tuple(ALL2ALL_BACKENDS),
        folded=True,
        auto=BY_SHAPE,
        help="How tokens reach experts that other copies of the model have. "
        f"{_named(GATHER)}: every rank sees all tokens; {_named(EXCHANGE)}: a token goes to the "
        "ranks alone that have its experts, on the CPU; unset: each where it moves less. The "
        "libraries with these names are not used.",
    )
    distributed_executor_backend: str = option(
        "",
        choices=("uni", "mp", "ray", "external_launcher"),
        auto="uni for one rank, else mp",
        help="uni: the model runs in the engine's own process; mp: in worker processes; ray: in "
        "processes that Ray places on the machines of a cluster; external_launcher: in the "
        "processes of a program that torchrun has started once per rank.",
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
    nnodes: int = option(
        1,
        low=1,
        aliases=("-n",),
        help="Machines that compute one model, with as many ranks on each. Each is given the same "
        "command, but for its --node-rank.",
    )
    node_rank: int = option(
        0,
        low=0,
        aliases=("-r",),
        local=True,
        help="Which of --nnodes machines this is. 0 schedules and serves; the others need "
        "--headless.",
    )
    master_addr: str = option(
        "127.0.0.1",
        local=True,
        help="Address of node 0, as all nodes reach it. Of use with --nnodes.",
    )
    master_port: int = option(
        29501,
        low=1,
        high=65535,
        local=True,
        help="TCP port of node 0 at which the other nodes meet it.",
    )
    headless: bool = option(
        False,
        folded=True,
        local=True,
        help="Run no server: ranks for node 0 on every node but 0 of --nnodes, or copies of the "
        "model for a server elsewhere (--data-parallel-address).",
    )

    # By the server that has this one, on all machines.
    served_copies: int = field(default=1, repr=False)
    # Of copies that share experts, once they have met; for one life of all of them.
    experts: SpreadExperts = field(default=NOT_SPREAD, repr=False)
    # Arguments may have secrets, and are of one machine.
    ray: RayStart = field(default=WITHOUT_RAY, repr=False)

    @property
    def local_copy(self) -> int:
        """Which of this machine's copies of the model an engine core has, from 0."""
        return self.data_parallel_rank - self.data_parallel_start_rank

    @property
    def expert_dispatch(self) -> str:
        """How tokens reach experts of other copies: GATHER, EXCHANGE or BY_SHAPE."""
        return ALL2ALL_BACKENDS.get(self.all2all_backend, BY_SHAPE)

    @property
    def balances_by_cache(self) -> bool:
        """Whether the choice of a copy needs to know what the copies have cached."""
        return self.served_copies > 1 and self.data_parallel_balance == "prefix-cache"

    @property
    def is_externally_launched(self) -> bool:
        """Whether every rank is in a process with a scheduler of its own."""
        return self.distributed_executor_backend == "external_launcher"

    @property
    def host_timeout_seconds(self) -> int:
        """Seconds that a rank waits for another on the host; 0: as long as gloo does."""
        return self.cpu_distributed_timeout_seconds or self.distributed_timeout_seconds

    @property
    def world_size(self) -> int:
        """Ranks that compute one copy of the model."""
        return self.tensor_parallel_size * self.pipeline_parallel_size
