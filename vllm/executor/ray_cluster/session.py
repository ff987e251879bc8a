"""The connection of this process to a Ray cluster."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from vllm.config.ray_start import WITHOUT_RAY, RayStart
from vllm.envs import inherited
from vllm.errors import ConfigError
from vllm.logger import init_logger

logger = init_logger(__name__)

THREADS: Final = "OMP_NUM_THREADS"
_UNREACHABLE_S: Final = 10.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
# Settings that may name files of the program's directory.
_PATHS: Final = ("model", "tokenizer", "hf_config_path", "generation_config", "download_dir")


def load(flag: str) -> Any:
    """The module `ray`, which `flag` asks for. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            f"{flag}: the package ray cannot be imported ({error}). Install it with `pip install "
            "'vllm[ray]'`, on all machines in the same version."
        ) from None


def start_of(
    arguments: Mapping[str, Any], flag: str = WITHOUT_RAY.flag, copies_here: int = -1
) -> RayStart:
    """Of an engine with these arguments, of which `flag` asks for Ray. Raises ConfigError.

    The engine may run in a process of its own, which is in no placement group.
    """
    ray = load(flag)
    packed = _packed(ray, arguments, flag)
    if not ray.is_initialized():
        return RayStart(packed, flag=flag, copies_here=copies_here)
    if ray.util.client.ray.is_connected():
        raise ConfigError(
            f"{flag}: this program is a Ray client (ray://), which the ranks cannot connect to. "
            "Run it on a machine of the cluster, as a job or an actor."
        )
    group = ray.util.get_current_placement_group()
    return RayStart(
        packed,
        ray.get_runtime_context().gcs_address,
        "" if group is None else group.id.hex(),
        flag,
        copies_here,
        inherited(THREADS) is not None and not was_set_at_birth(THREADS),
    )


def was_set_at_birth(variable: str) -> bool:
    """Whether this process has begun with an environment variable."""
    return f"\0{variable}=".encode() in b"\0" + Path("/proc/self/environ").read_bytes()


def _packed(ray: Any, arguments: Mapping[str, Any], flag: str) -> bytes:
    found = dict(arguments)
    for name in _PATHS:
        value = found.get(name)
        path = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
        if path and (name == "download_dir" or os.path.exists(path)):
            found[name] = os.path.abspath(path)
    try:
        return bytes(ray.cloudpickle.dumps(found))
    except Exception as error:  # of whatever the arguments are
        raise ConfigError(
            f"{flag}: the arguments of the engine cannot be sent to other machines ({error}). "
            "Leave out functions and objects that cannot be pickled."
        ) from error


class _Connection:
    """What all engines of this process share: one is the first, and one the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_sessions = 0
        self._is_ours = False  # the program itself is not connected

    def join(self, ray: Any, start: RayStart) -> None:
        """Raises ConfigError."""
        with self._lock:
            if not ray.is_initialized():
                with _handlers_kept():
                    try:
                        _connect(ray, start.cluster, start.flag)
                    except BaseException:
                        ray.shutdown()
                        raise
                self._is_ours = True
            self._num_sessions += 1

    def leave(self, ray: Any) -> None:
        with self._lock:
            self._num_sessions -= 1
            if self._num_sessions or not self._is_ours:
                return
            self._is_ours = False
            with _handlers_kept():
                try:
                    ray.shutdown()
                except Exception as error:  # the cluster may be gone
                    logger.warning("Ray did not end in order: %s", error)


_connection: Final = _Connection()


class Session:
    """This process as a driver of the cluster."""

    def __init__(self, start: RayStart) -> None:
        """Raises ConfigError if there is no cluster to be in."""
        self.ray = load(start.flag)
        _connection.join(self.ray, start)
        logger.info("Ray cluster at %s", self.ray.get_runtime_context().gcs_address)

    def end(self) -> None:
        """Leaves the cluster where no other engine of this process, nor the program, is in it."""
        _connection.leave(self.ray)


def _connect(ray: Any, cluster: str, flag: str) -> None:
    options = {"configure_logging": False, "log_to_driver": True}
    address = cluster or inherited("RAY_ADDRESS") or "auto"
    if address.startswith("ray://"):
        raise ConfigError(
            f"RAY_ADDRESS={address}: the ranks cannot connect to a Ray client. Run the engine on a "
            "machine of the cluster, and give its address as host:port, or none."
        )
    if address not in ("auto", "local"):
        _check_reach(address, flag)
    try:
        ray.init(address=address, **options)
    except Exception as error:  # of Ray's, which has many kinds
        if address != "auto" or not isinstance(error, ConnectionError):
            raise ConfigError(
                f"{flag}: the engine cannot join the Ray cluster at {address} ({error}). Correct "
                "RAY_ADDRESS and what that cluster asks of its drivers, or start one: ray start "
                "--head."
            ) from error
        logger.info("No Ray cluster runs here: a local one is started for this engine")
        ray.shutdown()
        ray.init(address="local", include_dashboard=False, **options)


def _check_reach(address: str, flag: str) -> None:
    """Raises ConfigError. Ray itself would try for minutes, and then end this process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"RAY_ADDRESS={address}: must be host:port, auto or local.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _UNREACHABLE_S).close()
    except OSError as error:
        raise ConfigError(
            f"{flag}: no Ray cluster answers at {address} ({error}). Correct RAY_ADDRESS, or "
            "start one: ray start --head."
        ) from None


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes the signals of a driver, in the main thread; they are the engine's."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS if is_main}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # it is not of Python
                signal.signal(number, handler)
