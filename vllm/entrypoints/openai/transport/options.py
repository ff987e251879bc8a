"""Settings of how clients reach the server and what it takes from them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from vllm.config.kinds import TEXTS
from vllm.config.option import option

LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")
NO_LIMIT = -1
CERT_REQS = (int(ssl.CERT_NONE), int(ssl.CERT_OPTIONAL), int(ssl.CERT_REQUIRED))


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    host: str = option("0.0.0.0", help="Address to listen on; '::' is all of IPv6.")
    port: int = option(8000, low=0, high=65535, help="Port to listen on; 0: any free one.")
    uds: str = option(
        "", help="Listen on a Unix socket of this path instead of on --host and --port."
    )
    root_path: str = option("", help="Path under which a proxy shows this server.")
    api_server_count: int = option(
        1,
        low=1,
        high=64,
        aliases=("-asc",),
        help="Processes that answer HTTP and tokenize, all in front of one engine.",
    )
    api_key: tuple[str, ...] = option(
        (),
        kind=TEXTS,
        secret=True,
        help="Keys of which a client must send one, as 'Authorization: Bearer KEY'. "
        "Without any, everybody may use the server. Also VLLM_API_KEY.",
    )
    ssl_keyfile: str = option("", help="Key of the server's certificate, a PEM file.")
    ssl_certfile: str = option(
        "", help="Certificate of the server with its chain, a PEM file. With it, HTTPS is spoken."
    )
    ssl_ca_certs: str = option("", help="Authorities that may have signed clients' certificates.")
    ssl_cert_reqs: int = option(
        CERT_REQS[0],
        choices=CERT_REQS,
        help="Certificates of clients: 0 are not asked for, 1 are checked if sent, 2 are required.",
    )
    ssl_ciphers: str = option(
        "", help="Ciphers for TLS 1.2, in OpenSSL's notation; without it OpenSSL chooses."
    )
    enable_ssl_refresh: bool = option(
        False, help="Load certificate, key and authorities again when their files change."
    )
    allow_credentials: bool = option(False, help="CORS: let browsers send credentials.")
    allowed_origins: tuple[str, ...] = option(
        ("*",), kind=TEXTS, help="CORS: origins whose pages may use the server."
    )
    allowed_methods: tuple[str, ...] = option(("*",), kind=TEXTS, help="CORS: methods allowed.")
    allowed_headers: tuple[str, ...] = option(("*",), kind=TEXTS, help="CORS: headers allowed.")
    middleware: tuple[str, ...] = option(
        (),
        kind=TEXTS,
        help="Import paths of ASGI middleware: classes, or functions (request, call_next). The "
        "last one sees a request first.",
    )
    max_request_body_bytes: int = option(
        64 * 2**20, low=1, help="Largest body of a request; a larger one is answered 413."
    )
    max_waiting_requests: int = option(
        NO_LIMIT,
        low=NO_LIMIT,
        help="Most sequences that wait to run, over all API servers; further requests are answered "
        "503 with Retry-After. -1: no limit.",
    )
    h11_max_incomplete_event_size: int = option(
        64 * 2**10, low=1024, help="Most bytes of a request's line and headers together."
    )
    h11_max_header_count: int = option(256, low=1, help="Most headers of a request.")
    client_timeout: int = option(
        60,
        low=1,
        help="Seconds that a client may take to send the headers of a request, or the next piece "
        "of its body, or to read the next piece of an answer.",
    )
    enable_request_id_headers: bool = option(
        False, help="Answer with the X-Request-Id of the request, or a new one."
    )
    disable_fastapi_docs: bool = option(False, help="No /docs, /redoc and /openapi.json.")
    uvicorn_log_level: str = option(
        "warning", choices=LOG_LEVELS, help="How much the HTTP server says."
    )
    disable_uvicorn_access_log: bool = option(
        False, help="No line per request at --uvicorn-log-level info."
    )
    disable_access_log_for_endpoints: str = option(
        "", help="Paths, separated by commas, that get no line in the access log."
    )
    log_config_file: str = option(
        "",
        help="A JSON file for logging.config.dictConfig, applied to every process of the server.",
    )
    shutdown_timeout: int = option(
        5, low=0, help="Seconds that open requests have to end when the server is stopped."
    )
