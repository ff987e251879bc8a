import asyncio
import json
import logging
import os
import socket
import stat
import sys

import httpx
import pytest

from tests.entrypoints.openai.listening import listening
from tests.limits import HANG_S, until
from vllm.entrypoints.openai.server_options import ServerOptions
from vllm.entrypoints.openai.transport.listener import Listener
from vllm.errors import ConfigError

BODY = {"prompt": "a"}


def options_of(**options):
    return ServerOptions(max_log_len=None, **options)


async def exchange(served, data):
    """Everything the server says to raw bytes, until it closes."""
    reader, writer = await served.connect()
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), HANG_S)
    writer.close()
    return answer


def head(*lines):
    return "\r\n".join((*lines, "", "")).encode()


async def test_a_unix_socket_is_served_and_its_file_removed(make_app, tmp_path):
    path = str(tmp_path / "api.sock")
    async with listening(make_app, uds=path) as served, served.client() as client:
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200
    assert not os.path.exists(path)


def test_a_socket_left_by_a_dead_server_is_replaced(tmp_path):
    path = str(tmp_path / "stale.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    first = Listener(options_of(uds=path), is_tls=False)
    with pytest.raises(ConfigError, match="another process listens on it"):
        Listener(options_of(uds=path), is_tls=False)
    first.close()
    assert not os.path.exists(path)


def test_paths_that_cannot_be_a_socket_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    for path, said in (
        (file, "exists and is no socket"),
        (tmp_path / "none" / "x.sock", "directory must exist"),
        (tmp_path / ("x" * 120), "at most 107 bytes"),
    ):
        with pytest.raises(ConfigError, match=said):
            Listener(options_of(uds=str(path)), is_tls=False)
    assert file.read_text() == "kept"


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
async def test_an_ipv6_address_is_served(make_app):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no ::1")
    async with listening(make_app, host="::1") as served, served.client() as client:
        assert served.url.startswith("http://[::1]:")
        assert (await client.get("/health")).status_code == 200


def test_an_address_of_another_machine_is_named():
    with pytest.raises(ConfigError, match=r"--host 192\.0\.2\.1"):
        Listener(options_of(host="192.0.2.1", port=0), is_tls=False)
    with pytest.raises(ConfigError, match="--host no such host"):
        Listener(options_of(host="no such host", port=0), is_tls=False)


async def test_a_body_over_the_limit_is_413_whether_it_says_so_or_not(make_app):
    async with (
        listening(make_app, max_request_body_bytes=1000) as served,
        served.client() as client,
    ):
        body = json.dumps({"prompt": "a" * 2000}).encode()

        async def unannounced():
            for at in range(0, len(body), 100):
                yield body[at : at + 100]

        for content in (body, unannounced()):
            reply = await client.post("/v1/completions", content=content)
            assert reply.status_code == 413
            assert "--max-request-body-bytes" in reply.json()["error"]["message"]
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200


async def test_too_many_headers_and_too_long_ones_are_refused(make_app):
    options = {"h11_max_header_count": 20, "h11_max_incomplete_event_size": 4096}
    async with listening(make_app, **options) as served, served.client() as client:
        many = {f"x-{i}": "1" for i in range(30)}
        reply = await client.get("/health", headers=many)
        assert reply.status_code == 431
        assert "--h11-max-header-count" in reply.json()["error"]["message"]
        long = await exchange(served, head("GET /health HTTP/1.1", "host: a", "x: " + "a" * 9000))
        assert long.startswith(b"HTTP/1.1 4")
        assert (await client.get("/health")).status_code == 200


async def test_clients_that_dawdle_are_cut_off(make_app):
    async with listening(make_app, client_timeout=1) as served:
        silent = exchange(served, b"")
        half_a_head = exchange(served, b"GET /health HTTP/1.1\r\nhost")
        half_a_body = exchange(
            served,
            head(
                "POST /v1/completions HTTP/1.1",
                "host: a",
                "content-type: application/json",
                "content-length: 100",
            )
            + b'{"prompt"',
        )
        answers = await asyncio.gather(silent, half_a_head, half_a_body)
        assert answers[:2] == [b"", b""]
        assert answers[2].startswith(b"HTTP/1.1 408")
        assert b"--client-timeout" in answers[2]


async def test_a_client_that_never_reads_its_stream_is_cut_off(make_app, engine):
    engine.text = "x" * 60_000
    async with listening(make_app, client_timeout=1) as served:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, served.listener.socket.getsockname())
        body = json.dumps({"prompt": "a", "max_tokens": 60_000, "stream": True}).encode()
        request = head(
            "POST /v1/completions HTTP/1.1",
            "host: a",
            "content-type: application/json",
            f"content-length: {len(body)}",
        )
        await loop.sock_sendall(raw, request + body)
        await until(lambda: engine.aborted, "the abort")
        raw.close()
        assert engine.aborted and not engine.running


@pytest.mark.parametrize("request_id", ["a\tb", "x" * 257, "with space", "caf\u00e9"])
async def test_request_ids_that_could_break_out_of_a_line_are_refused(make_app, request_id):
    async with listening(make_app, enable_request_id_headers=True) as served:
        answer = await exchange(
            served,
            head("GET /health HTTP/1.1", "host: a", "connection: close").replace(
                b"\r\n\r\n", b"\r\nx-request-id: " + request_id.encode() + b"\r\n\r\n"
            ),
        )
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"X-Request-Id" in answer


async def test_a_header_cannot_bring_another_one_along(make_app):
    async with listening(make_app, enable_request_id_headers=True) as served:
        smuggled = b"GET /health HTTP/1.1\r\nhost: a\r\nx-request-id: a\rset-cookie: b\r\n\r\n"
        answer = await exchange(served, smuggled)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"set-cookie" not in answer


MALFORMED = (
    (b"nonsense\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\n\r\n", 400),  # no host
    (b"GET /health HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n", 400),
    (b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
    (b"POST /tokenize HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n", 400),
    (b"POST /tokenize HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 501),
    (b"POST /tokenize HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    (b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 100_000, 431),
)


async def test_what_is_no_http_is_an_error_of_the_api(make_app):
    async with listening(make_app) as served:
        for data, status in MALFORMED:
            headers, _, body = (await exchange(served, data)).partition(b"\r\n\r\n")
            assert headers.startswith(b"HTTP/1.1 %d " % status), (data[:60], headers)
            assert b"content-type: application/json" in headers.lower()
            error = json.loads(body)["error"]
            assert error["code"] == status and set(error) == {"message", "type", "param", "code"}
            assert "not valid HTTP" in error["message"]
            kinds = {400: "BadRequestError", 501: "NotImplementedError"}
            assert error["type"] == kinds.get(status, "RequestHeadersTooLargeError")


@pytest.mark.parametrize("file", [False, True])
async def test_the_access_log_has_no_queries(make_app, tmp_path, caplog, file):
    config = tmp_path / "log.json"
    config.write_text('{"version": 1, "disable_existing_loggers": false}')
    options = {"log_config_file": str(config)} if file else {}
    async with (
        listening(make_app, uvicorn_log_level="info", **options) as served,
        served.client() as client,
    ):
        logger = logging.getLogger("uvicorn.access")
        logger.addHandler(caplog.handler)
        caplog.set_level(logging.INFO, "uvicorn.access")
        await client.get("/version?key=secret")
        logger.removeHandler(caplog.handler)
    lines = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert len(lines) == 1 and '"GET /version HTTP/1.1" 200' in lines[0]


async def test_unknown_routes_and_methods_are_errors_of_the_api(client):
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/completions", 405),
        ("POST", "/health", 405),
    ):
        reply = await client.request(method, path)
        assert reply.status_code == status
        assert reply.json()["error"]["code"] == status


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"prompt": "\xff"}', "not valid UTF-8 at byte 12"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "too many digits"),
        (b"\x00" * 100, "not valid JSON"),
        (b'{"prompt": "a", "request_id": "a\\nWARNING all is lost"}', "printable"),
        (b'{"prompt": "a", "request_id": "' + b"a" * 300 + b'"}', "at most 256"),
    ],
)
async def test_hostile_bodies_are_told_what_is_wrong_with_them(client, body, said):
    reply = await client.post(
        "/v1/completions", content=body, headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]


MIDDLEWARE = """
class Stamp:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def stamped(message):
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-stamp", b"class"))
            await send(message)
        await self.app(scope, receive, stamped)


async def refuse_teapots(request, call_next):
    from starlette.responses import Response
    if request.url.path == "/teapot":
        return Response(status_code=418)
    return await call_next(request)


number = 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "operators_code.py").write_text(MIDDLEWARE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "operators_code"
    sys.modules.pop("operators_code", None)


async def test_middleware_of_the_operator_wraps_every_request(make_app, module):
    app = make_app(middleware=(f"{module}.Stamp", f"{module}.refuse_teapots"))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        reply = await client.post("/v1/completions", json={**BODY, "stream": True})
        assert reply.headers["x-stamp"] == "class"
        assert reply.text.endswith("data: [DONE]\n\n")
        assert (await client.get("/teapot")).status_code == 418


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("operators_code.none", "has no none"),
        ("operators_code.number", "is a int"),
        ("no_such_module.x", "cannot be imported"),
        ("x", "cannot be imported"),
    ],
)
def test_what_is_no_middleware_is_named(make_app, module, name, said):
    with pytest.raises(ConfigError, match=said):
        make_app(middleware=(name,))


@pytest.mark.parametrize("root", ["/api", "/api/"])
async def test_keys_guard_the_same_paths_under_a_proxys_path(make_app, root):
    app = make_app(api_key=("secret",), root_path=root)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        for path in ("/v1/models", "/api/v1/models", "/v1/models/x", "/api/tokenize", "/nothing"):
            assert (await client.get(path)).status_code == 401, path
        for path in ("/health", "/api/health"):
            assert (await client.get(path)).status_code in (200, 404), path
        bearing = {"Authorization": "Bearer secret"}
        assert (await client.get("/v1/models", headers=bearing)).status_code == 200
        assert (await client.options("/v1/models")).status_code == 401
