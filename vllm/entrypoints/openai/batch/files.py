"""Batch files, on disk or behind a URL."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

from vllm.errors import ConfigError
from vllm.logger import init_logger

logger = init_logger(__name__)
TIMEOUT_S = 300.0
ATTEMPTS = 4
FIRST_PAUSE_S = 1.0


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def read_lines(name: str) -> list[str]:
    """The lines that are not blank. Raises ConfigError if there are none, or no such file."""
    text = _download(name) if is_url(name) else _read(name)
    # Not splitlines(): JSON text may hold other separators, such as U+2028.
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ConfigError(f"--input-file {name}: the file is empty; a batch has a line or more.")
    return lines


@contextmanager
def output(name: str, scratch: str) -> Iterator[IO[str]]:
    """A file to write to. What a URL is to get is sent at the end. Raises ConfigError."""
    with _opened(name, scratch) as file:
        yield file
        if is_url(name):
            file.flush()
            _upload(name, Path(file.name))


def _opened(name: str, scratch: str) -> IO[str]:
    """The file itself, or one for what goes to a URL, which is gone when it is closed."""
    where = f"--output-tmp-dir {scratch}" if is_url(name) else f"--output-file {name}"
    try:
        if is_url(name):
            return tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=scratch or None)
        return Path(name).open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}.") from None


def _read(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--input-file {name}: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--input-file {name}: is not UTF-8: {error}.") from None


def _download(url: str) -> str:
    try:
        answer = httpx.get(url, timeout=TIMEOUT_S, follow_redirects=True)
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"--input-file {url}: {error}") from None
    try:
        return answer.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--input-file {url}: is not UTF-8: {error}.") from None


def _upload(url: str, path: Path) -> None:
    """Answers took long to make: try more than once before they are given up."""
    for attempt in range(ATTEMPTS):
        try:
            answer = httpx.put(url, content=path.read_bytes(), timeout=TIMEOUT_S)
            answer.raise_for_status()
            return
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if attempt == ATTEMPTS - 1:
                kept = _keep(path)
                raise ConfigError(
                    f"--output-file {url}: {error}. The answers are in {kept}."
                ) from None
            logger.warning("PUT %s: %s; trying again", url, error)
            time.sleep(FIRST_PAUSE_S * 2**attempt)


def _keep(path: Path) -> Path:
    """A copy that outlives the temporary file."""
    kept = path.with_name(path.name + ".jsonl")
    kept.write_bytes(path.read_bytes())
    return kept
