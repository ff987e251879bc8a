"""Ports, under vLLM's path."""

from __future__ import annotations

import socket


def get_open_port() -> int:
    """A TCP port that nobody uses at this moment; somebody may before the caller does."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("", 0))
            return int(listener.getsockname()[1])
    except OSError:  # a machine without IPv4
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener:
            listener.bind(("", 0))
            return int(listener.getsockname()[1])
