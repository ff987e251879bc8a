"""The connection of this process to a Ray cluster."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from vllm.config.ray_start import RayStart
from vllm.envs import inherited
from vllm.errors import ConfigError
from vllm.logger import init_logger

logger = init_logger(__name__)

_UNREACHABLE_S: Final = 10.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
# Settings that may name files of the program's directory.
_PATHS: Final = ("model", "tokenizer", "hf_config_path", "generation_config", "download_dir")


def load() -> Any:
    """The module `ray`. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            f"--distributed-executor-backend ray: the package ray cannot be imported ({error}). "
            "Install it with `pip install 'vllm[ray]'`, on all machines in the same version."
        ) from None


def start_of(arguments: Mapping[str, Any]) -> RayStart:
    """Of an engine with these arguments, which this program asks for.

    The engine may run in a process of its own, which is outside the placement group that this
    program is in unless it is told.
    """
    found = dict(arguments)
    for name in _PATHS:
        value = found.get(name)
        if isinstance(value, str) and value and os.path.exists(value):
            found[name] = os.path.abspath(value)
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return RayStart(found)
    if ray.util.client.ray.is_connected():
        raise ConfigError(
            "--distributed-executor-backend ray: this program is a Ray client (ray://), which the "
            "ranks cannot connect to. Run it on a machine of the cluster, as a job or an actor."
        )
    group = ray.util.get_current_placement_group()
    return RayStart(
        found,
        ray.get_runtime_context().gcs_address,
        "" if group is None else group.id.hex(),
    )


class Session:
    """This process as a driver of the cluster; ended by whoever has begun it."""

    def __init__(self, start: RayStart) -> None:
        """Raises ConfigError if there is no cluster to be in."""
        self.ray = load()
        self._is_ours = not self.ray.is_initialized()
        if self._is_ours:
            with _handlers_kept():
                self._connect(start.cluster)

    def end(self) -> None:
        if self._is_ours:
            with _handlers_kept():
                self.ray.shutdown()

    def _connect(self, cluster: str) -> None:
        options = {"configure_logging": False, "log_to_driver": True}
        address = cluster or inherited("RAY_ADDRESS") or "auto"
        if address.startswith("ray://"):
            raise ConfigError(
                f"RAY_ADDRESS={address}: the ranks cannot connect to a Ray client. Run the engine "
                "on a machine of the cluster, and give its address as host:port, or none."
            )
        if address not in ("auto", "local"):
            _check_reach(address)
        try:
            self.ray.init(address=address, **options)
            logger.info("Ray cluster at %s", self.ray.get_runtime_context().gcs_address)
        except Exception as error:  # of Ray's, which has many kinds
            if address != "auto" or not isinstance(error, ConnectionError):
                raise ConfigError(
                    "--distributed-executor-backend ray: the engine cannot join the Ray cluster at "
                    f"{address} ({error}). Correct RAY_ADDRESS and what that cluster asks of its "
                    "drivers, or start one: ray start --head."
                ) from error
            logger.info("No Ray cluster runs here: a local one is started for this engine")
            self.ray.init(address="local", include_dashboard=False, **options)


def _check_reach(address: str) -> None:
    """Raises ConfigError. Ray itself would try for minutes, and then end this process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _UNREACHABLE_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--distributed-executor-backend ray: no Ray cluster answers at {address} ({error}). "
            "Correct RAY_ADDRESS, or start one: ray start --head."
        ) from None


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes the signals of a driver; they are the engine's."""
    try:
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        yield
    finally:
        for number, handler in before.items():
            try:
                signal.signal(number, handler)
            except ValueError:  # not the main thread, where Ray does not take them either
                return
