"""examples/deploy/ray_serve.py without a cluster: routing, forwarding, flags."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import aclosing
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import Message

from vllm.errors import ConfigError

pytest.importorskip("ray.serve", reason="ray[serve] is not installed", exc_type=ImportError)

from ray.exceptions import RayActorError

from examples.deploy import ray_serve
from examples.deploy.ray_serve import Forwarded, Front, Head, Scaling, answer, opening, ranking

REPLICAS = ["a1", "b2", "c3", "d4"]


def key_of(body: dict[str, Any], **headers: str) -> bytes:
    given = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return opening(given, json.dumps(body).encode())


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    """A conversation that begins with an instruction; the user and the model take turns."""
    messages = [{"role": "system", "content": "Be brief."}]
    for number, text in enumerate(texts):
        messages.append({"role": ("user", "assistant")[number % 2], "content": text})
    return {"model": "m", "messages": messages, **more}


def test_a_conversation_has_one_opening() -> None:
    first = key_of(chat("Hello"))

    assert first
    assert key_of(chat("Hello", "Hi.", "And then?", temperature=1, stream=True)) == first
    assert key_of(chat("Hello there")) != first
    assert key_of(chat("Hello", tools=[{"type": "function"}])) != first


@pytest.mark.parametrize(
    ("body", "grown"),
    [
        ({"prompt": "x" * 1024}, {"prompt": "x" * 1024 + " and more"}),
        ({"prompt": list(range(1024))}, {"prompt": list(range(1030))}),
        ({"input": "x" * 1024}, {"input": "x" * 1024 + "y", "max_output_tokens": 3}),
        (
            {"system": "s", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text"}]},
                    {"role": "assistant", "content": "y"},
                ],
                "system": "s",
            },
        ),
    ],
)
def test_what_follows_an_opening_does_not_change_it(
    body: dict[str, Any], grown: dict[str, Any]
) -> None:
    assert key_of(body)
    assert key_of(body) == key_of(grown)


def test_a_session_that_the_client_names_wins() -> None:
    assert key_of(chat("Hello"), x_session_id="s1") == key_of(chat("Bye"), x_session_id="s1")
    assert opening({b"x-session-id": b"s1"}, b"") == b"s1"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"model": "m"}', b"\xff"])
def test_other_requests_have_no_opening(body: bytes) -> None:
    assert opening({}, body) == b""


def test_keys_are_spread_and_move_only_where_a_replica_came_or_went() -> None:
    keys = [f"conversation {number}".encode() for number in range(2000)]
    before = {key: ranking(key, REPLICAS)[0] for key in keys}
    more = {key: ranking(key, [*REPLICAS, "e5"])[0] for key in keys}
    fewer = {key: ranking(key, REPLICAS[1:])[0] for key in keys}

    assert all(400 < count < 600 for count in Counter(before.values()).values())
    assert {more[key] for key in keys if more[key] != before[key]} == {"e5"}
    assert {before[key] for key in keys if fewer[key] != before[key]} == {"a1"}
    assert ranking(keys[0], REPLICAS) == ranking(keys[0], REPLICAS[::-1])


@pytest.mark.parametrize(
    ("loads", "limit"), [([0, 0], 4), ([3, 0, 0], 4), ([40, 0, 0, 0], 12.8125), ([], 4)]
)
def test_a_replica_may_have_a_quarter_more_than_its_share(loads: list[int], limit: float) -> None:
    assert ray_serve.limit_of_load(loads) == limit


# -- a request's way ------------------------------------------------------------------------------


async def echo(request: Request) -> JSONResponse:
    body = await request.body()
    return JSONResponse({"body": body.decode(), "q": request.url.query}, 201, {"x-own": "1"})


async def endless(request: Request) -> StreamingResponse:
    async def pieces() -> Any:
        try:
            while True:
                yield b"piece"
                await asyncio.sleep(0)
        finally:
            request.app.state.ended = True

    return StreamingResponse(pieces())


async def broken(request: Request) -> JSONResponse:
    raise ValueError("a mistake")


@pytest.fixture
def app() -> Starlette:
    routes = [Route("/echo", echo, methods=["POST"]), Route("/endless", endless)]
    return Starlette(routes=[*routes, Route("/broken", broken)])


def request(path: str, method: str = "GET", body: bytes = b"") -> Forwarded:
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"a=1",
        "headers": [(b"host", b"h")],
    }
    return Forwarded(scope, body, b"")


async def test_an_application_answers_a_forwarded_request(app: Starlette) -> None:
    head, body = [part async for part in answer(app, request("/echo", "POST", b"text"))]

    assert isinstance(head, Head) and head.status == 201
    assert (b"x-own", b"1") in head.headers
    assert json.loads(body) == {"body": "text", "q": "a=1"}


async def test_ending_an_answer_early_ends_its_request(app: Starlette) -> None:
    async with aclosing(answer(app, request("/endless"))) as parts:
        assert isinstance(await anext(parts), Head)
        assert [await anext(parts) for _ in range(3)] == [b"piece"] * 3

    assert app.state.ended


async def test_a_mistake_of_the_application_is_an_answer_of_its_own(app: Starlette) -> None:
    head, *_ = [part async for part in answer(app, request("/broken"))]

    assert isinstance(head, Head) and head.status == 500


async def test_an_application_that_does_not_answer_is_an_error() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    with pytest.raises(RuntimeError, match="without a whole answer"):
        [part async for part in answer(silent, request("/"))]


class Handle:
    """A DeploymentHandle whose replica answers with given parts, or an error after them."""

    def __init__(self, *parts: Head | bytes | Exception) -> None:
        self.parts = parts
        self.requests: list[Forwarded] = []

    def options(self, stream: bool) -> Handle:
        assert stream
        return self

    async def remote(self, forwarded: Forwarded) -> Any:
        self.requests.append(forwarded)
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part


async def through(
    front: Front, *messages: Message, path: str = "/v1/completions"
) -> list[dict[str, Any]]:
    """What the front sends for a request whose body comes in these messages."""
    coming = iter(messages)
    sent: list[dict[str, Any]] = []

    async def receive() -> Message:
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {**request(path, "POST").scope, "app": object(), "state": {}}
    await front.forward(scope, receive, send)
    return sent


def piece(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_front_passes_request_and_answer_on() -> None:
    handle = Handle(Head(200, [(b"a", b"b")]), b"one", b"two")

    sent = await through(Front(handle, 1000), piece(b'{"prompt": ', more=True), piece(b'"Once"}'))

    (forwarded,) = handle.requests
    assert forwarded.body == b'{"prompt": "Once"}'
    assert forwarded.opening == key_of({"prompt": "Once"})
    assert not {"app", "state"} & set(forwarded.scope)
    assert sent[0] == {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
    assert [message["body"] for message in sent[1:]] == [b"one", b"two", b""]
    assert [message.get("more_body", False) for message in sent[1:]] == [True, True, False]


async def test_a_body_that_is_too_large_is_cut_where_the_replica_refuses_it() -> None:
    handle = Handle(Head(413, []))

    await through(Front(handle, 10), *(piece(b"12345", more=True) for _ in range(100)))

    assert len(handle.requests[0].body) == 15


async def test_a_client_that_leaves_before_it_has_asked_asks_nothing() -> None:
    handle = Handle()

    assert await through(Front(handle, 10), {"type": "http.disconnect"}) == []
    assert handle.requests == []


async def test_a_replica_that_is_gone_is_status_503_unless_its_answer_has_begun() -> None:
    head, *rest = await through(Front(Handle(RayActorError()), 10), piece(b""))

    assert head["status"] == 503
    assert (b"retry-after", b"1") in head["headers"]
    assert json.loads(rest[0]["body"])["error"]["type"] == "ServiceUnavailableError"
    with pytest.raises(RayActorError):
        await through(Front(Handle(Head(200, []), RayActorError()), 10), piece(b""))


# -- flags --------------------------------------------------------------------------------------


def test_a_mapping_is_a_command_line() -> None:
    words = ray_serve.words_of(
        {
            "model": "m",
            "max_model_len": 4096,
            "enable-prefix-caching": False,
            "served-model-name": ["a", "b"],
            "hf-overrides": {"rope_theta": 1},
            "seed": None,
        }
    )

    assert words == [
        "--model=m",
        "--max-model-len=4096",
        "--enable-prefix-caching=false",
        "--served-model-name",
        "a",
        "b",
        '--hf-overrides={"rope_theta": 1}',
    ]
    args = ray_serve.parsed(words)
    assert (args.model, args.max_model_len, args.enable_prefix_caching) == ("m", 4096, False)


@pytest.mark.parametrize("flag", [f"--{name.replace('_', '-')}" for name in ray_serve.NOT_HERE])
def test_flags_of_another_server_are_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag} is not for an engine behind Ray Serve"):
        ray_serve.parsed(["m", flag, *["2"][flag == "--headless" :]])


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["-tp=2", "--device=cpu"], {"num_cpus": 3.0}),
        (["-tp=2", "-pp=2", "--device=hpu"], {"num_cpus": 1.0, "resources": {"HPU": 4}}),
        (["-dp=2", "-tp=2", "--device=hpu"], {"num_cpus": 1.0, "resources": {"HPU": 4}}),
    ],
)
def test_a_replica_has_a_device_per_rank(words: list[str], wanted: dict[str, Any]) -> None:
    args = ray_serve.parsed(["m", *words])
    assert ray_serve.resources(args, 1.0) == {"ray_actor_options": wanted}


def test_ranks_that_ray_places_have_a_bundle_each() -> None:
    words = ["m", "-tp=2", "--device=hpu", "--distributed-executor-backend=ray"]
    wanted = ray_serve.resources(ray_serve.parsed(words), 2.0)

    assert wanted["placement_group_bundles"] == [{"CPU": 2.0}, {"HPU": 1.0}, {"HPU": 1.0}]
    assert wanted["ray_actor_options"] == {"num_cpus": 2.0}


def test_an_application_is_made_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `serve run` gives it: key=value."""
    made: list[Any] = []
    monkeypatch.setattr(ray_serve, "bound", lambda *given: made.append(given))

    ray_serve.application(
        {"model": "m", "min_replicas": "2", "max-replicas": "4", "downscale_delay_s": "1.5"}
    )

    scaling = Scaling(min_replicas=2, max_replicas=4, downscale_delay_s=1.5)
    assert made == [(["--model=m"], scaling)]


def test_deployments_say_what_serve_must_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1")
    monkeypatch.setenv("UNKNOWN_VARIABLE", "1")
    scaling = Scaling(max_replicas=3, target_ongoing_requests=7, drain_s=50, fronts=2)

    front = ray_serve.bound(["m", "--device=cpu", "--max-request-body-bytes=99"], scaling)

    (replica, limit) = front._bound_deployment.init_args
    deployment = replica._bound_deployment
    variables = deployment.ray_actor_options["runtime_env"]["env_vars"]
    assert limit == 99
    assert front._bound_deployment.num_replicas == 2
    assert deployment._deployment_config.autoscaling_config.max_replicas == 3
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 50
    assert variables["VLLM_API_KEY"] == "secret"
    assert variables["PT_HPU_LAZY_MODE"] == "1"
    assert "UNKNOWN_VARIABLE" not in variables


def test_what_cannot_work_is_refused_before_a_replica_starts() -> None:
    with pytest.raises(ConfigError, match="min_replicas 2 max_replicas 1"):
        Scaling(min_replicas=2)
    with pytest.raises(ConfigError, match="--max-num-seqs=0: see the line above"):
        ray_serve.application({"model": "m", "max-num-seqs": 0})
    with pytest.raises(ConfigError, match="tool-call-parser"):
        ray_serve.bound(["m", "--device=cpu", "--tool-call-parser=unknown"], Scaling())


async def test_the_router_tries_full_replicas_last() -> None:
    """Only what it adds to Serve's router: the order of candidates."""
    replicas = [Running(name) for name in REPLICAS]
    loads = dict.fromkeys(REPLICAS, 0)
    router = Loaded(loads)
    key = b"conversation"
    first, *others = ranking(key, REPLICAS)

    async def order() -> list[str]:
        pending = Pending(key)
        ranks = await ray_serve.OpeningRouter.choose_replicas(router, replicas, pending)
        assert pending.routing_context.should_backoff
        return [replica.replica_id.unique_id for rank in ranks for replica in rank]

    assert await order() == [first, *others]
    loads[first] = 5
    assert await order() == [*others, first]
    loads.update(dict.fromkeys(others, 5))
    assert await order() == [first, *others], "all have as much: the conversation stays"
    nothing = await ray_serve.OpeningRouter.choose_replicas(router, replicas, Pending(b""))
    assert nothing == [replicas], "Serve takes the one with the fewest requests"


class Name:
    def __init__(self, name: str) -> None:
        self.unique_id = name


class Running:
    def __init__(self, name: str) -> None:
        self.replica_id = Name(name)


class Pending:
    class Context:
        should_backoff = False

    def __init__(self, key: bytes) -> None:
        self.args = [Forwarded({}, b"", key)]
        self.routing_context = self.Context()


class Loaded:
    """A router's view of open requests, by replica."""

    def __init__(self, loads: dict[str, int]) -> None:
        self.replica_queue_len_cache = self
        self.loads = loads

    def get(self, replica_id: Name) -> int:
        return self.loads[replica_id.unique_id]
