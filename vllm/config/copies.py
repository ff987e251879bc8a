"""Which copies of the model are on this machine and behind its server."""

from __future__ import annotations

from typing import Any

from vllm.errors import ConfigError

_SIZE, _LOCAL = "--data-parallel-size", "--data-parallel-size-local"
_START, _RANK = "--data-parallel-start-rank", "--data-parallel-rank"
_HYBRID, _EXTERNAL = "--data-parallel-hybrid-lb", "--data-parallel-external-lb"


def decide_copies(fields: dict[str, Any]) -> None:
    """Replace what is not decided in `fields` of a ParallelConfig. Raises ConfigError."""
    size, local = fields["data_parallel_size"], fields["data_parallel_size_local"]
    start, rank = fields["data_parallel_start_rank"], fields["data_parallel_rank"]
    is_headless = fields["headless"] and size > 1
    is_external = fields["data_parallel_external_lb"] or rank is not None
    is_hybrid = fields["data_parallel_hybrid_lb"] or (
        start > 0 and not is_external and not is_headless
    )
    if size > 1:
        _check_combinations(fields)
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
    fields["data_parallel_size_local"] = size if local is None else local
    fields["data_parallel_start_rank"] = fields["data_parallel_rank"] = start
    fields["served_copies"] = local if is_external or is_hybrid else size


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


def _check_combinations(fields: dict[str, Any]) -> None:
    """Raises ConfigError for what is not built yet."""
    size = fields["data_parallel_size"]
    backend = fields["distributed_executor_backend"]
    for flag, is_asked in (
        ("--nnodes", fields["nnodes"] > 1),
        ("--distributed-executor-backend ray", backend == "ray"),
        ("--distributed-executor-backend external_launcher", backend == "external_launcher"),
    ):
        if is_asked:
            raise ConfigError(
                f"{_SIZE} {size} {flag}: copies of a model whose ranks are on several machines are "
                f"not available yet in this build. Leave {flag} out, or start a server for each "
                f"copy with {_RANK}."
            )
