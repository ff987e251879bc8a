"""The limit on open files of a process, of which every connection is one."""

from __future__ import annotations

import resource
from typing import Final

from vllm.errors import ConfigError
from vllm.logger import init_logger

logger = init_logger(__name__)
# Pipes, sockets and event loops of a process, and what libraries open while they are imported.
NEEDED: Final = 128


def raise_limit(wanted: int) -> int:
    """Raise this process's own limit as far as it may; returns the limit, 2^63 for none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    aim = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < aim:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))
            soft = aim
        except (OSError, ValueError) as error:
            logger.debug("The limit on open files stays %d: %s", soft, error)
    return soft if soft != resource.RLIM_INFINITY else 1 << 63


def need_open_files(count: int = NEEDED) -> None:
    """Raises ConfigError where libraries would end the process without a word."""
    limit = raise_limit(count)
    if limit < count:
        raise ConfigError(
            f"this process may open {limit} files, and an engine in a process of its own needs "
            f"{count}. Allow more: 'ulimit -n {count}', LimitNOFILE={count} or --ulimit "
            f"nofile={count}."
        )
