"""The socket on which clients come in."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from vllm.entrypoints.openai.transport.options import TransportOptions
from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.utils.open_files import raise_limit

logger = init_logger(__name__)
BACKLOG: Final = 2048
ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
WANTED_FILES: Final = 65_535
NEEDED_FILES: Final = 4_096  # a thousand streams, and what the process itself opens


class Listener:
    """Owns the socket, and the file of a Unix one."""

    def __init__(self, options: TransportOptions, is_tls: bool) -> None:
        """Raises ConfigError naming the flag to change."""
        self.options = options
        self.is_tls = is_tls
        path = options.uds
        self.socket = _bind_path(path) if path else _bind_address(options.host, options.port)
        self.identity = _identity(path) if path else None

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it."""
        scheme = "https" if self.is_tls else "http"
        if self.options.uds:
            return f"{scheme}://localhost"
        host = ANY_ADDRESS.get(self.options.host, self.options.host)
        shown = f"[{host}]" if ":" in host else host
        return f"{scheme}://{shown}:{self.socket.getsockname()[1]}"

    def close(self) -> None:
        self.socket.close()
        # Another server may have taken the path over since.
        if self.identity is not None and _identity(self.options.uds) == self.identity:
            os.unlink(self.options.uds)


def _bind_address(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ConfigError(
            f"--host {host}: {error.strerror or error}. Give an address of this machine, or "
            "0.0.0.0 for all of them."
        ) from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # '::' is for both, whatever the machine's default.
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        listener.bind(address)
        # Here already: two servers may bind one port, and only the second listen fails.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port}: another process listens on {host}:{port}. Stop it, choose another "
                "port, or give --port 0 for any free one."
            ) from None
        raise ConfigError(f"--host {host} --port {port}: {error.strerror or error}.") from None
    listener.setblocking(False)
    return listener


def _bind_path(path: str) -> socket.socket:
    _clear_path(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = str(error) if error.errno is None else error.strerror
        raise ConfigError(
            f"--uds {path}: {reason}. Its directory must exist and be writable, and the path have "
            "at most 107 bytes."
        ) from None
    listener.setblocking(False)
    return listener


def _clear_path(path: str) -> None:
    """Remove the socket of a server that is gone. Raises ConfigError for anything else."""
    try:
        mode = Path(path).lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"--uds {path}: exists and is no socket. Remove it or choose a path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise ConfigError(f"--uds {path}: {error.strerror or error}.") from None
    raise ConfigError(f"--uds {path}: another process listens on it. Stop it or choose a path.")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def allow_many_connections() -> None:
    limit = raise_limit(WANTED_FILES)
    if limit < NEEDED_FILES:
        logger.warning(
            "This process may open %d files, which bounds its connections; allow it more with "
            "'ulimit -n %d' or LimitNOFILE=",
            limit,
            WANTED_FILES,
        )
