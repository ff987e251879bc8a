"""TLS of the server: its context from flags, and certificates that are replaced as it runs."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from vllm.entrypoints.openai.transport.options import TransportOptions
from vllm.errors import ConfigError
from vllm.logger import init_logger

logger = init_logger(__name__)
REFRESH_S: Final = 1.0  # between looks at the files

Stamps = tuple[tuple[int, int, int] | None, ...]


class Tls:
    """The server's context. New connections use what was loaded last, old ones live on."""

    def __init__(self, options: TransportOptions) -> None:
        """Raises ConfigError naming the flag whose file does not serve."""
        self.options = options
        self.context = make_context(options)
        self.stamps = self._stamps()

    def refresh(self) -> bool:
        """Load the files again if they changed; True if that was done.

        What does not fit together, such as a key that is replaced before its certificate, is
        logged, and what was loaded before stays until the files change again.
        """
        stamps = self._stamps()
        if stamps == self.stamps:
            return False
        self.stamps = stamps
        try:
            # A context that failed half-way would have the one file and not the other.
            make_context(self.options)
            _load(self.context, self.options)
        except ConfigError as error:
            logger.warning("Certificates changed but are not used: %s", error)
            return False
        logger.info("Certificates loaded again from %s", self.options.ssl_certfile)
        return True

    def _stamps(self) -> Stamps:
        options = self.options
        return tuple(
            _stamp(path)
            for path in (options.ssl_certfile, options.ssl_keyfile, options.ssl_ca_certs)
            if path
        )

    @contextlib.asynccontextmanager
    async def refreshing(self) -> AsyncIterator[None]:
        """Follow the files while the context is open, if that was asked for."""
        if not self.options.enable_ssl_refresh:
            yield
            return
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            self.refresh()


def tls_of(options: TransportOptions) -> Tls | None:
    """None for plain HTTP. Raises ConfigError."""
    if options.ssl_certfile:
        return Tls(options)
    for flag, value in (
        ("--ssl-keyfile", options.ssl_keyfile),
        ("--ssl-ca-certs", options.ssl_ca_certs),
        ("--ssl-ciphers", options.ssl_ciphers),
        ("--ssl-cert-reqs", options.ssl_cert_reqs),
        ("--enable-ssl-refresh", options.enable_ssl_refresh),
    ):
        if value:
            raise ConfigError(f"{flag} {value}: needs --ssl-certfile, without which HTTP is plain.")
    return None


def make_context(options: TransportOptions) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if options.ssl_cert_reqs and not options.ssl_ca_certs:
        raise ConfigError(
            f"--ssl-cert-reqs {options.ssl_cert_reqs}: needs --ssl-ca-certs, the authorities that "
            "may have signed a client's certificate."
        )
    _load(context, options)
    context.verify_mode = ssl.VerifyMode(options.ssl_cert_reqs)
    if options.ssl_ciphers:
        try:
            context.set_ciphers(options.ssl_ciphers)
        except ssl.SSLError:
            raise ConfigError(
                f"--ssl-ciphers {options.ssl_ciphers}: OpenSSL knows no such cipher; "
                "'openssl ciphers' lists them."
            ) from None
    return context


def _load(context: ssl.SSLContext, options: TransportOptions) -> None:
    for flag, path in (
        ("--ssl-certfile", options.ssl_certfile),
        ("--ssl-keyfile", options.ssl_keyfile),
        ("--ssl-ca-certs", options.ssl_ca_certs),
    ):
        if path:
            _check_readable(flag, path)
    key = options.ssl_keyfile or None
    try:
        # A password would be asked for on the terminal, of which a service has none.
        context.load_cert_chain(options.ssl_certfile, key, password="")
    except (ssl.SSLError, OSError) as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"--ssl-certfile {options.ssl_certfile} with --ssl-keyfile {key or 'in the same file'}:"
            f" {reason}. They must be PEM files that belong together, the key without a password."
        ) from None
    if options.ssl_ca_certs:
        try:
            context.load_verify_locations(options.ssl_ca_certs)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"--ssl-ca-certs {options.ssl_ca_certs}: {error}. It must be a PEM file."
            ) from None


def _check_readable(flag: str, path: str) -> None:
    try:
        with open(path, "rb"):
            return
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror or error}.") from None


def _stamp(path: str) -> tuple[int, int, int] | None:
    """What changes with a file's content; None while it is being replaced."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
