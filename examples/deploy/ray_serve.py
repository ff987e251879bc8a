"""The OpenAI server behind Ray Serve: as many engines as the load needs.

    python examples/deploy/ray_serve.py MODEL --max-replicas 8 [flags of vllm serve]
    serve run examples.deploy.ray_serve:application model=MODEL max_replicas=8

Each replica is one engine with the server's whole application. A front takes requests from Serve's
proxy and hands each to the replica that has the beginning of its conversation in its prefix cache.
docs/deployment.md says more.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, fields
from typing import Any, Final

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, HTTPOptions, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.main import build_parser
from vllm.entrypoints.openai.cli_args import server_options, validate_parsed_serve_args
from vllm.entrypoints.openai.run_batch import application as engine_application
from vllm.errors import ConfigError, EngineDeadError
from vllm.executor.ray_cluster.environment import travelling

SESSION_HEADER: Final = b"x-session-id"
REPLICA_HEADER: Final = b"x-replica"
# Of a text prompt: its first characters stand for the conversation that it begins.
OPENING_CHARS: Final = 1024
# A replica may have this much more than its share of the open requests before others take over.
LOAD_FACTOR: Final = 1.25
SLACK: Final = 4
LAST_ANSWERS_S: Final = 1.0
# An answer about health takes an engine that hangs two seconds.
HEALTH_PERIOD_S: Final = 5.0
HEALTH_LIMIT_S: Final = 15.0
# What Serve itself does, or what needs an address that a replica does not have.
NOT_HERE: Final = {
    "host": "--http-host says where Serve listens",
    "port": "--http-port says where Serve listens",
    "uds": "Serve listens on an address and port",
    "ssl_keyfile": "Serve has TLS options of its own",
    "ssl_certfile": "Serve has TLS options of its own",
    "api_server_count": "--fronts are the processes that answer HTTP",
    "nnodes": "use --distributed-executor-backend ray",
    "headless": "use --distributed-executor-backend ray",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How many replicas there are, and when."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 32.0  # of a replica; more requests make more replicas
    max_ongoing_requests: int = 512  # of a replica; further ones wait at the front
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    drain_s: float = 120.0  # what a replica that is removed leaves its open requests
    fronts: int = 1
    cpus: float = 1.0  # of a replica, besides a CPU per rank where ranks run on CPUs

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"min_replicas {self.min_replicas} max_replicas {self.max_replicas}: there must be "
                "at least 1, and no fewer than the minimum at most."
            )


# -- which replica --------------------------------------------------------------------------------


def opening(headers: Mapping[bytes, bytes], body: bytes) -> bytes:
    """What stays the same while a conversation goes on; b"" where nothing does.

    A session that the client names, else all up to the first message of the user, else the first
    characters of the prompt.
    """
    session = headers.get(SESSION_HEADER)
    if session:
        return session
    try:
        asked = json.loads(body) if body else None
    except ValueError:
        return b""
    if not isinstance(asked, dict):
        return b""
    parts = [asked.get(name) for name in ("model", "tools", "system", "instructions")]
    for name in ("messages", "input", "prompt"):
        if (value := asked.get(name)) is not None:
            parts.append(_beginning(value))
            return json.dumps(parts, sort_keys=True).encode()
    return b""


def _beginning(value: Any) -> Any:
    if isinstance(value, str):
        return value[:OPENING_CHARS]
    if not isinstance(value, list):
        return value
    for number, item in enumerate(value):
        if isinstance(item, dict) and item.get("role") == "user":
            return value[: number + 1]
    return value[:OPENING_CHARS]  # token ids, or several prompts


def ranking(key: bytes, replicas: Sequence[str]) -> list[str]:
    """Replicas by preference for `key` (rendezvous hashing).

    Every front computes the same without knowing of the others. A replica that comes takes its
    share of the keys, one that goes leaves its own to the others; no other key moves.
    """
    return sorted(
        replicas,
        key=lambda name: hashlib.blake2b(key + b"\0" + name.encode(), digest_size=8).digest(),
    )


def limit_of_load(loads: Sequence[int]) -> float:
    """Open requests that a replica may have and still be given what belongs to it."""
    return max(SLACK, LOAD_FACTOR * (sum(loads) + 1) / max(1, len(loads)))


class OpeningRouter(RequestRouter):
    """A conversation keeps its replica, unless that has more than its share of the requests."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        # Serve waits between rounds; without this it would ask again at once.
        pending_request.routing_context.should_backoff = True
        key = pending_request.args[0].opening
        if not key:
            return [candidate_replicas]  # the one with the fewest requests
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        known = self.replica_queue_len_cache
        loads = {name: known.get(replica.replica_id) or 0 for name, replica in by_name.items()}
        limit = limit_of_load(list(loads.values()))
        ranked = ranking(key, list(by_name))
        ranked.sort(key=lambda name: loads[name] >= limit)  # stable: full ones come last
        return [[by_name[name]] for name in ranked]


# -- between front and replica --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An HTTP request on its way to a replica."""

    scope: dict[str, Any]
    body: bytes
    opening: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """What an answer begins with; its body follows in pieces, as bytes."""

    status: int
    headers: list[tuple[bytes, bytes]]


async def answer(app: ASGIApp, request: Forwarded) -> AsyncIterator[Head | bytes]:
    """Run an application for one request. Ending the iteration early is a client that went away."""
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    taken = asyncio.Semaphore(1)
    is_read = False

    async def receive() -> Message:
        nonlocal is_read
        if is_read:
            await asyncio.Event().wait()  # until the task is cancelled
        is_read = True
        return {"type": "http.request", "body": request.body, "more_body": False}

    async def send(message: Message) -> None:
        await taken.acquire()
        messages.put_nowait(message)

    async def run() -> None:
        await app(dict(request.scope), receive, send)

    task = asyncio.create_task(run())
    # Put without waiting: it comes however the task ends.
    task.add_done_callback(lambda _: messages.put_nowait(None))
    is_whole = False
    try:
        while (message := await messages.get()) is not None:
            taken.release()
            if message["type"] == "http.response.start":
                yield Head(message["status"], list(message.get("headers", ())))
            elif message["type"] == "http.response.body":
                if message.get("body"):
                    yield bytes(message["body"])
                is_whole = not message.get("more_body", False)
        if not is_whole:
            await task  # raises what went wrong
            raise RuntimeError("the application ended without a whole answer")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Flags of `vllm serve`, of which a replica has no use for a few. Raises ConfigError."""
    parser = build_parser("serve", words)
    args, plain = (parser.parse_args(["serve", *given]) for given in (words, ()))
    if args.model_tag is not None:
        args.model = args.model_tag
    for name, instead in NOT_HERE.items():
        if vars(args).get(name) != vars(plain).get(name):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is not for an engine behind Ray Serve: {instead}.")
    return args


class Replica:
    """An engine and its application. Serve calls its methods on one event loop."""

    async def __init__(self, words: list[str]) -> None:
        self.stack = AsyncExitStack()
        self.name = serve.get_replica_context().replica_id.unique_id.encode()
        args = parsed(words)
        self.app, self.engine = await self.stack.enter_async_context(
            engine_application(args, server_options(args))
        )
        watcher = asyncio.create_task(self._end_with_engine())
        self.stack.callback(watcher.cancel)

    async def _end_with_engine(self) -> None:
        """Serve replaces a process that has ended sooner than one that it finds unhealthy."""
        await self.engine.died()
        await asyncio.sleep(LAST_ANSWERS_S)  # the open requests are answered with the error
        os._exit(1)

    async def __call__(self, request: Forwarded) -> AsyncIterator[Head | bytes]:
        async for part in answer(self.app, request):
            if isinstance(part, Head):
                part.headers.append((REPLICA_HEADER, self.name))
            yield part

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        await self.engine.check_health()
        if await self.engine.is_hung():
            raise EngineDeadError("the engine gives no sign of life")

    async def __del__(self) -> None:
        """Serve awaits it once, when the open requests have ended."""
        await self.stack.aclose()


class Front:
    """Hands requests to replicas, and their answers back."""

    def __init__(self, replicas: DeploymentHandle, max_body_bytes: int) -> None:
        self.replicas = replicas.options(stream=True)
        self.max_body_bytes = max_body_bytes

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return Starlette(routes=[Mount("/", app=self.forward)])

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await self._read(scope, receive)
        if request is None:
            return
        has_begun = False
        try:
            async for part in self.replicas.remote(request):
                if isinstance(part, Head):
                    await send(
                        {
                            "type": "http.response.start",
                            "status": part.status,
                            "headers": part.headers,
                        }
                    )
                    has_begun = True
                else:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except RayError:
            if has_begun:
                raise
            # The replica died. Clients of OpenAI's libraries ask again by themselves.
            error = {
                "message": "the replica that had this request is gone; retry",
                "type": "ServiceUnavailableError",
                "param": None,
                "code": 503,
            }
            response = JSONResponse({"error": error}, 503, {"retry-after": "1"})
            await response(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> Forwarded | None:
        """The whole request; None when the client went away."""
        body = bytearray()
        # A body that is too large goes on cut, and large enough for the replica to refuse it.
        while len(body) <= self.max_body_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        kept = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path")
        kept += ("query_string", "root_path", "headers", "client", "server")
        taken = {name: scope[name] for name in kept if name in scope}
        taken["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        begins = opening(dict(taken["headers"]), bytes(body))
        return Forwarded(taken, bytes(body), begins)


# -- deployments ----------------------------------------------------------------------------------


def words_of(flags: Mapping[str, Any]) -> list[str]:
    """A mapping of flags, as a file for --config has them, as words of a command line."""
    words: list[str] = []
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            words += [flag, *map(str, value)]
        elif isinstance(value, bool):
            words.append(f"{flag}={str(value).lower()}")
        elif value is not None:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            words.append(f"{flag}={text}")
    return words


def resources(args: argparse.Namespace, cpus: float) -> dict[str, Any]:
    """What Ray reserves for a replica: its process, and one HPU or CPU per rank.

    --device auto means HPU where the cluster has some now, so name it where machines come later.

    Ranks of one machine are children of the replica's process, which has their devices. With
    --distributed-executor-backend ray each has a bundle of the replica's placement group, on any
    machine.
    """
    engine = AsyncEngineArgs.from_cli_args(args)
    num_ranks = engine.tensor_parallel_size * engine.pipeline_parallel_size
    num_ranks *= engine.data_parallel_size_local or engine.data_parallel_size
    has_hpu = engine.device == "auto" and ray.cluster_resources().get("HPU", 0) > 0
    device = "HPU" if engine.device == "hpu" or has_hpu else "CPU"
    if engine.distributed_executor_backend == "ray":
        return {
            "ray_actor_options": {"num_cpus": cpus},
            "placement_group_bundles": [{"CPU": cpus}, *[{device: 1.0}] * num_ranks],
            "placement_group_strategy": "PACK",
        }
    if device == "CPU":
        return {"ray_actor_options": {"num_cpus": cpus + num_ranks}}
    return {"ray_actor_options": {"num_cpus": cpus, "resources": {device: num_ranks}}}


def bound(words: Sequence[str], scaling: Scaling) -> serve.Application:
    """The deployments for an engine of these flags. Raises ConfigError."""
    args = parsed(words)
    validate_parsed_serve_args(args)
    options = server_options(args)
    wanted = resources(args, scaling.cpus)
    # The variables of the engine are there before the process of a replica begins.
    variables = travelling(os.environ)
    if "VLLM_API_KEY" in os.environ:
        variables["VLLM_API_KEY"] = os.environ["VLLM_API_KEY"]
    wanted["ray_actor_options"]["runtime_env"] = {"env_vars": variables}
    replica = serve.deployment(
        Replica,
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_ongoing_requests,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
        ),
        max_ongoing_requests=scaling.max_ongoing_requests,
        graceful_shutdown_timeout_s=scaling.drain_s,
        graceful_shutdown_wait_loop_s=1.0,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_LIMIT_S,
        request_router_config=RequestRouterConfig(request_router_class=OpeningRouter),
        **wanted,
    )
    front = serve.deployment(
        serve.ingress()(Front),
        num_replicas=scaling.fronts,
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=scaling.drain_s,
        ray_actor_options={"num_cpus": 0},
    )
    return front.bind(replica.bind(list(words)), options.max_request_body_bytes)


def application(flags: dict[str, Any]) -> serve.Application:
    """For `serve run` and RayService: fields of Scaling, and flags of `vllm serve`."""
    rest = {name.replace("-", "_"): value for name, value in flags.items()}
    given = {
        item.name: type(item.default)(rest.pop(item.name))
        for item in fields(Scaling)
        if item.name in rest
    }
    words = words_of(rest)
    try:
        return bound(words, Scaling(**given))
    except SystemExit:  # the parser has said why, and would end a process of Serve
        raise ConfigError(f"{' '.join(words)}: see the line above") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        usage="%(prog)s MODEL [flags]",
        epilog="All other flags are those of `vllm serve`.",
    )
    parser.add_argument("--http-host", default="0.0.0.0", help="where Serve listens")
    parser.add_argument("--http-port", type=int, default=8000)
    for item in fields(Scaling):
        flag = f"--{item.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(item.default), default=item.default)
    given, words = parser.parse_known_args()
    ray.init()  # the cluster of RAY_ADDRESS or of this machine, else a new one
    try:
        scaling = Scaling(**{item.name: getattr(given, item.name) for item in fields(Scaling)})
        deployments = bound(words, scaling)
    except ConfigError as error:
        sys.exit(str(error))
    serve.start(http_options=HTTPOptions(host=given.http_host, port=given.http_port))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            serve.run(deployments, blocking=True)
    finally:
        serve.shutdown()


if __name__ == "__main__":
    main()
