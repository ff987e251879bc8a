"""Which copies of the model are on this machine and behind its server."""

from __future__ import annotations

from typing import Any, Final

from vllm import envs
from vllm.errors import ConfigError
from vllm.logger import init_logger

logger = init_logger(__name__)

_SIZE, _LOCAL = "--data-parallel-size", "--data-parallel-size-local"
_BACKEND: Final = "--data-parallel-backend"
_START, _RANK = "--data-parallel-start-rank", "--data-parallel-rank"
_HYBRID, _EXTERNAL = "--data-parallel-hybrid-lb", "--data-parallel-external-lb"


def decide_copies(fields: dict[str, Any]) -> None:
    """Replace what is not decided in `fields` of a ParallelConfig. Raises ConfigError."""
    _read_environment(fields)
    size, local = fields["data_parallel_size"], fields["data_parallel_size_local"]
    start, rank = fields["data_parallel_start_rank"], fields["data_parallel_rank"]
    # A node that runs ranks of a copy has what its node 0 has.
    is_headless = fields["headless"] and size > 1 and fields["nnodes"] == 1
    is_external = fields["data_parallel_external_lb"] or rank is not None
    is_hybrid = fields["data_parallel_hybrid_lb"] or (
        start > 0 and not is_external and not is_headless
    )
    fields["data_parallel_address"] = _address(fields)
    if size > 1:
        _check_ranks(fields, is_external)
        if fields["data_parallel_backend"] == "ray":
            _check_ray(is_external, is_hybrid, is_headless)
    if is_external and is_hybrid:
        raise ConfigError(
            f"{_HYBRID} and {_EXTERNAL} ({_RANK}): a server has all copies of its machine, or one. "
            "Leave one of them out."
        )
    if is_headless and (is_external or is_hybrid):
        raise ConfigError(
            "--headless: the copies of this machine are behind a server elsewhere, which "
            f"balances. Leave {_HYBRID}, {_EXTERNAL} and {_RANK} out, or --headless."
        )
    if is_external:
        start = _only_copy(size, local, start, rank)
        local = 1
    elif is_hybrid or is_headless:
        _check_range(size, local, start, _HYBRID if is_hybrid else "--headless")
    elif local is not None and (local > size or (size == 1 and not local)):
        raise ConfigError(f"{_LOCAL} {local}: {_SIZE} is {size}. Raise that, or leave it out.")
    if fields["data_parallel_backend"] == "ray":
        if size > 1:
            local = 0  # that the server itself starts
        else:
            logger.warning("%s ray has no effect: %s is 1.", _BACKEND, _SIZE)
            fields["data_parallel_backend"] = "mp"
    fields["data_parallel_size_local"] = size if local is None else local
    fields["data_parallel_start_rank"] = fields["data_parallel_rank"] = start
    fields["served_copies"] = local if is_external or is_hybrid else size


def _read_environment(fields: dict[str, Any]) -> None:
    """Programs that each have a copy may be told so by variables, where there are no flags."""
    size = envs.VLLM_DP_SIZE
    if size == 1 or fields["data_parallel_size"] > 1 or fields["data_parallel_rank"] is not None:
        return
    rank = envs.VLLM_DP_RANK
    if rank >= size:
        raise ConfigError(
            f"VLLM_DP_RANK={rank}: programs are numbered from 0, and VLLM_DP_SIZE is {size}."
        )
    fields["data_parallel_size"], fields["data_parallel_rank"] = size, rank
    fields["data_parallel_address"] = fields["data_parallel_address"] or envs.VLLM_DP_MASTER_IP
    if envs.VLLM_DP_MASTER_PORT:
        fields["data_parallel_rpc_port"] = envs.VLLM_DP_MASTER_PORT


def _address(fields: dict[str, Any]) -> str:
    """Of the server's machine; "": where Ray says that it is."""
    is_asked_of_ray = fields["data_parallel_backend"] == "ray" and fields["data_parallel_size"] > 1
    default = "" if is_asked_of_ray else "127.0.0.1"
    return fields["data_parallel_address"] or default


def _check_ray(is_external: bool, is_hybrid: bool, is_headless: bool) -> None:
    """Raises ConfigError."""
    for flags, is_asked in (
        (f"{_EXTERNAL} ({_RANK})", is_external),
        (f"{_HYBRID} ({_START})", is_hybrid),
        ("--headless", is_headless),
    ):
        if is_asked:
            raise ConfigError(
                f"{_BACKEND} ray {flags}: one command starts the copies on all machines of the "
                f"cluster, behind one server. Leave {flags} out, or {_BACKEND}."
            )


def _check_range(size: int, local: int | None, start: int, flag: str) -> None:
    """Check the copies of a machine that does not have them all. Raises ConfigError."""
    if not local:
        raise ConfigError(f"{flag}: give {_LOCAL}, the copies of this machine, too.")
    if start + local > size:
        raise ConfigError(
            f"{_START} {start} {_LOCAL} {local}: copies are numbered from 0, and {_SIZE} is "
            f"{size}. Lower one of the two, or raise {_SIZE}."
        )


def _only_copy(size: int, local: int | None, start: int, rank: int | None) -> int:
    """The number of the copy of a server that has one."""
    if rank is None:
        raise ConfigError(f"{_EXTERNAL}: give {_RANK}, the number of this server's copy, too.")
    if rank >= size:
        raise ConfigError(f"{_RANK} {rank}: copies are numbered from 0, and {_SIZE} is {size}.")
    if local not in (None, 1):
        raise ConfigError(
            f"{_RANK} {rank} {_LOCAL} {local}: {_RANK} is for servers with one copy. Leave "
            f"{_LOCAL} out, or give {_START} instead of {_RANK}."
        )
    if start not in (0, rank):
        raise ConfigError(f"{_RANK} {rank} {_START} {start}: leave one of them out.")
    return rank


def _check_ranks(fields: dict[str, Any], is_external: bool) -> None:
    """Check where the ranks of each copy are. Raises ConfigError."""
    size, backend = fields["data_parallel_size"], fields["distributed_executor_backend"]
    if backend == "external_launcher":
        raise ConfigError(
            f"{_SIZE} {size} --distributed-executor-backend external_launcher: a program that "
            "torchrun has started steps the engine itself, and cannot while it does something "
            "else. Start a program for each copy instead, with VLLM_DP_SIZE and VLLM_DP_RANK: the "
            "engine starts its ranks."
        )
    if fields["nnodes"] > 1 and not is_external:
        raise ConfigError(
            f"{_SIZE} {size} --nnodes {fields['nnodes']}: --master-addr is the first machine of "
            f"one copy, and every copy needs its own. Start a server for each copy ({_RANK}), or "
            "let Ray place the ranks of all (--distributed-executor-backend ray)."
        )
    if backend == "ray" and fields["data_parallel_backend"] == "ray":
        raise ConfigError(
            f"{_BACKEND} ray --distributed-executor-backend ray: the first takes the devices of a "
            "copy on one machine, and the second would take them again, for its ranks. Leave out "
            "the second, or the first where the ranks of a copy are to be on several machines."
        )
