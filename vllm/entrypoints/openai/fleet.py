"""--api-server-count: several processes that answer HTTP, in front of one engine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from socket import socket
from typing import Final, NamedTuple

from vllm.config.vllm import VllmConfig
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.attached import Attachment
from vllm.engine.client import ProcessClient
from vllm.engine.clients import attached_client, process_client
from vllm.engine.core_process import end_with_parent
from vllm.engine.own_replicas import OwnReplicas
from vllm.entrypoints.openai.admission import SharedTally, Tallies
from vllm.entrypoints.openai.announcement import announce
from vllm.entrypoints.openai.application import make_app
from vllm.entrypoints.openai.server_options import ServerOptions
from vllm.entrypoints.openai.transport.listener import Listener, allow_many_connections
from vllm.entrypoints.openai.transport.logs import configure_logs
from vllm.entrypoints.openai.transport.server import HttpServer, run_in_loop
from vllm.entrypoints.openai.transport.tls import tls_of
from vllm.entrypoints.stop_signals import SIGNALS, stop_signals
from vllm.errors import ConfigError, EngineDeadError
from vllm.logger import init_logger, tag_process
from vllm.metrics.shared import sharing_metrics
from vllm.utils.spawning import begin_process, undisturbed

logger = init_logger(__name__)
STARTED: Final = b"started"
# For a server to end that was told to, beyond the time that its requests have.
PATIENCE_S: Final = 10.0
HURRY_S: Final = 2.0  # the same, once it was told for the second time
LOOK_S: Final = 0.2


class Member(NamedTuple):
    """What one API server is started with."""

    attachment: Attachment
    num_members: int
    directory: str  # of the files that all members map

    @property
    def index(self) -> int:
        return self.attachment.front_end - 1

    def tallies(self) -> Tallies:
        paths = tally_paths(self.directory)
        return Tallies(*(SharedTally(path, self.index, self.num_members) for path in paths))


def tally_paths(directory: str) -> tuple[str, str]:
    return f"{directory}/sequences", f"{directory}/requests"


def run_fleet(config: VllmConfig, options: ServerOptions, listener: Listener) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises ConfigError, LoadError, EngineDeadError.
    """
    client = process_client(config, num_others=options.api_server_count)
    fleet = Fleet(config, options, listener, client)
    listening = threading.Thread(target=fleet.watch_engine, name="engine-core", daemon=True)
    listening.start()
    try:
        for path in tally_paths(client.directory):
            Path(path).write_bytes(bytes(SharedTally.file_bytes(options.api_server_count)))
        with sharing_metrics(f"{client.directory}/metrics"):
            fleet.run()
    finally:
        client.stop()
        listening.join()
        client.close()
    if fleet.failure is not None:
        raise fleet.failure


class Fleet:
    """Owns the API servers. When one ends unasked, all end."""

    def __init__(
        self,
        config: VllmConfig,
        options: ServerOptions,
        listener: Listener,
        client: ProcessClient | OwnReplicas,
    ) -> None:
        self.config = config
        self.options = options
        self.listener = listener
        self.client = client
        self.failure: EngineDeadError | None = None
        self.engine_error: EngineDeadError | None = None
        self.num_ends = 0  # how often they were told
        self.ends_by_s: float | None = None  # when those that are left are killed; never later
        self.processes: list[SpawnProcess] = []
        self.pipes: list[Connection] = []

    def run(self) -> None:
        try:
            with stop_signals.taken(SIGNALS, self.end):
                for number in range(self.options.api_server_count):
                    self._start(number + 1)
                if self._all_started():
                    announce(self.listener, self.options, self.config.model.served_model_name[0])
                self._wait_for_end()
        finally:
            for process in self.processes:
                if process.is_alive():
                    process.kill()
                process.join()

    def _start(self, front_end: int) -> None:
        context = multiprocessing.get_context("spawn")
        reader, writer = context.Pipe(duplex=False)
        client = self.client
        attachment = Attachment(client.addresses, front_end, tuple(client.living_cores))
        member = Member(attachment, self.options.api_server_count, client.directory)
        process = context.Process(
            target=member_main,
            args=(self.config, self.options, self.listener.socket, member, writer),
            name=f"vllm-api-server-{front_end}",
        )
        with undisturbed():
            process.start()
        writer.close()
        self.processes.append(process)
        self.pipes.append(reader)

    def _all_started(self) -> bool:
        """Wait until they listen; False when one ended instead, or all are to end."""
        waiting = list(self.pipes)
        while waiting:
            if self.ends_by_s is not None:
                return False
            for reader in wait(waiting, timeout=LOOK_S):
                assert isinstance(reader, Connection)
                try:
                    reader.recv_bytes(len(STARTED))
                except (EOFError, OSError):
                    return False
                waiting.remove(reader)
        return True

    def _wait_for_end(self) -> None:
        sentinels = {process.sentinel: process for process in self.processes}
        killed: set[SpawnProcess] = set()
        while sentinels:
            for sentinel in wait(list(sentinels), timeout=LOOK_S):
                assert isinstance(sentinel, int)
                self._note_end(sentinels.pop(sentinel), killed)
            late = [process for process in sentinels.values() if process not in killed]
            if self.ends_by_s is not None and time.monotonic() > self.ends_by_s and late:
                logger.error("API servers that did not end in time are killed: %d", len(late))
                for process in late:
                    process.kill()
                killed.update(late)

    def _note_end(self, process: SpawnProcess, killed: set[SpawnProcess]) -> None:
        process.join()
        was_told = self.ends_by_s is not None and process.exitcode in (0, -signal.SIGTERM)
        if was_told or process in killed:
            return
        if self.failure is None:
            self.failure = self.engine_error or EngineDeadError(
                f"{process.name} (process {process.pid}) ended with exit code {process.exitcode}, "
                "and all end with it"
            )
        if self.ends_by_s is None:
            self.end()

    def end(self) -> None:
        """Tell all to end: the first time they drain, the second they do not wait."""
        self.num_ends += 1
        patience_s = HURRY_S if self.num_ends > 1 else self.options.shutdown_timeout + PATIENCE_S
        ends_by_s = time.monotonic() + patience_s
        self.ends_by_s = ends_by_s if self.ends_by_s is None else min(self.ends_by_s, ends_by_s)
        for process in self.processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)

    def watch_engine(self) -> None:
        """Thread: what the core tells everybody is not for us, but its end is."""
        try:
            while self.client.receive() is not None:
                continue
        except EngineDeadError as error:
            # Its API servers find out by themselves, answer what is open and end.
            self.engine_error = error
        except Exception as error:
            logger.exception("Messages of the engine could not be received")
            self.engine_error = EngineDeadError(f"nothing can be received: {error!r}")
            self.end()


def member_main(
    config: VllmConfig,
    options: ServerOptions,
    listener: socket,
    member: Member,
    started: Connection,
) -> None:
    """One API server."""
    # Ctrl-C reaches the whole terminal; the launcher decides what it means for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_signals.watched((signal.SIGTERM,)):
        begin_process()
        tag_process(f"api {member.index}")
        end_with_parent(member.directory)
        configure_logs(options)
        allow_many_connections()
        try:
            run_in_loop(_serve(config, options, listener, member, started))
        except (ConfigError, EngineDeadError) as error:
            logger.error("%s", error)
            raise SystemExit(1) from None


async def _serve(
    config: VllmConfig,
    options: ServerOptions,
    listener: socket,
    member: Member,
    started: Connection,
) -> None:
    engine = AsyncLLM.from_client(config, attached_client(config, member.attachment))
    try:
        await engine.check_health()
        app, context = await make_app(engine, config, options, member.tallies(), member.index)
        server = HttpServer(options, app, engine, context.admission, tls_of(options))
        server.signals = (signal.SIGTERM,)
        server.on_started = lambda: started.send_bytes(STARTED)
        await server.run_until_told(listener)
    finally:
        engine.shutdown()
