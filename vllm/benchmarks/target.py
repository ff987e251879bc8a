"""The server that a benchmark talks to."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from vllm.benchmarks.datasets.codec import Codec, LocalCodec, ServerCodec
from vllm.benchmarks.serve_options import TargetOptions
from vllm.errors import ConfigError
from vllm.utils.http_client import Server, ServerError

POLL_S = 0.25
# Of statuses, as ServerError tells them.
HINTS = {
    "status 401": "Give the server's key with --api-key.",
    "status 404": "--base-url is without /v1.",
}


@dataclass(frozen=True, slots=True)
class Target:
    url: str
    server: Server
    model: str  # as requests name it
    headers: dict[str, str]

    @classmethod
    def of(cls, options: TargetOptions) -> Target:
        """Raises ConfigError when the server does not answer, or serves nothing."""
        url = (options.base_url or f"http://{_bracketed(options.host)}:{options.port}").rstrip("/")
        headers = options.headers()
        try:
            server = Server.at(url, options.key(), verify=not options.insecure)
        except ValueError as error:
            raise ConfigError(f"--base-url: {error}") from None
        served = asyncio.run(_served(server, options.ready_check_timeout_sec))
        return cls(url, server, options.served_model_name or options.model or served, headers)

    def codec(self, options: TargetOptions) -> Codec:
        if options.tokenizer:
            return LocalCodec.load(
                options.tokenizer, options.tokenizer_mode, options.trust_remote_code
            )
        headers = dict(self.headers)
        if self.server.api_key:
            headers["Authorization"] = f"Bearer {self.server.api_key}"
        return ServerCodec(self.url, headers, self.model, verify=not options.insecure)


async def _served(server: Server, limit_s: float) -> str:
    deadline_s = time.monotonic() + limit_s
    while True:
        try:
            return str((await server.get("/v1/models"))["data"][0]["id"])
        except (OSError, EOFError) as error:
            if time.monotonic() >= deadline_s:
                where = f"{server.host}:{server.port}"
                raise ConfigError(
                    f"the server cannot be used: {where}: {error}. Start one with "
                    "`vllm serve MODEL`, or say where it is with --base-url."
                ) from error
        except ServerError as error:
            # A server that is loading its model may answer 503.
            if "status 503" not in str(error) or time.monotonic() >= deadline_s:
                hint = next((text for code, text in HINTS.items() if code in str(error)), "")
                raise ConfigError(f"the server cannot be used: {error}. {hint}".rstrip()) from error
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"the server cannot be used: GET /v1/models has no list of models ({error!r})"
            ) from error
        await asyncio.sleep(POLL_S)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
