"""Batch files, on disk or behind a URL."""

from __future__ import annotations

import codecs
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx

from vllm.entrypoints.openai.batch.lines import has_failed
from vllm.errors import ConfigError
from vllm.logger import init_logger

logger = init_logger(__name__)
TIMEOUT_S = 300.0
ATTEMPTS = 4
FIRST_PAUSE_S = 1.0
# Of files that are text, but no JSON lines; UTF-32's begins as UTF-16's does.
OTHER_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NAME_DIGITS: Final = 12


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def read_lines(name: str) -> list[bytes]:
    """The lines that are not blank; what is wrong with one is its own error. Raises ConfigError."""
    data = _download(name) if is_url(name) else _read(name)
    if data.startswith(OTHER_MARKS):
        raise ConfigError(f"--input-file {name}: is UTF-16 or UTF-32. Convert it to UTF-8.")
    # Not splitlines(): JSON text may hold other separators, such as U+2028.
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [line for line in lines if line.strip()]


def check_distinct(source: str, target: str) -> None:
    """Raises ConfigError if answers would be written over the questions, by whatever names."""
    if is_url(source) or is_url(target):
        same = source == target
    else:
        try:
            same = os.path.samefile(source, target)
        except OSError:  # one is not there
            same = False
    if same:
        raise ConfigError(
            f"--output-file {target}: is the input file, which answers would replace. Name another."
        )


class Answers:
    """The file that answers are written to, one line each; it says what it has already.

    Raises ConfigError where it cannot be written.
    """

    def __init__(self, flag: str, path: Path, mode: int, is_lasting: bool) -> None:
        """`is_lasting`: it is a file proper, and may hold what an earlier run wrote."""
        self.flag = flag
        self.path = path
        self.is_lasting = is_lasting
        self.num_lines = 0
        self.num_failed = 0  # of those that an earlier run wrote
        with self.telling():
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW if is_lasting else os.O_WRONLY
            self._fd = os.open(path, flags, mode)
            if is_lasting:
                self._take_over()

    def write(self, line: str) -> None:
        """At once: what is written stays, however this process ends."""
        data = line.encode()
        with self.telling():
            while data:
                data = data[os.write(self._fd, data) :]
        self.num_lines += 1

    def close(self) -> None:
        """May be called again. Some file systems say only here that there was no room."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with self.telling():
                os.close(fd)

    def abandon(self) -> None:
        """Not all answers are there: what is stays for the next run."""
        with suppress(ConfigError):
            self.close()
        if self.is_lasting and not self.num_lines:
            with suppress(OSError):
                self.path.unlink()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """What goes wrong is told with the flag, and with what is left."""
        try:
            yield
        except OSError as error:
            kept = ""
            if self.is_lasting and self.num_lines:
                kept = (
                    f" {self.path} has the first {self.num_lines} answers; the same command goes "
                    "on from there."
                )
            raise ConfigError(f"{self.flag}: {error.strerror or error}.{kept}") from None

    def _take_over(self) -> None:
        """Keep the whole lines of an earlier run; one that was cut off is cut away."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self.flag}: another run writes {self.path} now.") from None
        if os.fstat(self._fd).st_uid != os.geteuid():
            raise ConfigError(f"{self.flag}: {self.path} belongs to another user. Remove it.")
        size = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n") or (failed := has_failed(line)) is None:
                break
            size += len(line)
            self.num_lines += 1
            self.num_failed += failed
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, size, os.SEEK_SET)
        if size:
            logger.info(
                "%s has %d answers of an earlier run, which are kept; remove it to begin anew",
                self.path,
                self.num_lines,
            )


@contextmanager
def output(name: str, scratch: str, batch: Iterable[bytes]) -> Iterator[Answers]:
    """Where the answers are written: a file that gets its name, or is sent to its URL, when all are
    there. It is found again by `batch`, which is all that they go by. Raises ConfigError.
    """
    digest = hashlib.sha256(name.encode(errors="surrogateescape"))
    for part in batch:
        digest.update(b"\n%b" % part)
    partial = f"{digest.hexdigest()[:NAME_DIGITS]}.partial"
    target = Path(os.path.realpath(name))  # not a link is replaced, but what it names
    flag = f"--output-file {name}"
    if is_url(name):
        where = f"--output-tmp-dir {scratch}" if scratch else flag
        path = Path(scratch or tempfile.gettempdir(), f"vllm-batch-{partial}")
        answers = Answers(where, path, 0o600, True)
    elif is_replaceable(name):
        answers = Answers(flag, target.with_name(f"{target.name}.{partial}"), 0o666, True)
    else:
        answers = Answers(flag, Path(name), 0o666, False)
    try:
        yield answers
        answers.close()
    except BaseException:
        answers.abandon()
        raise
    if is_url(name):
        _upload(name, answers.path)
        answers.path.unlink()
    elif answers.is_lasting:
        with answers.telling():
            os.replace(answers.path, target)


def is_replaceable(name: str) -> bool:
    """A file or nothing: not a terminal, a pipe, a directory."""
    if Path(name).is_relative_to("/dev") or Path(name).is_relative_to("/proc"):
        return False
    try:
        return stat.S_ISREG(os.stat(name).st_mode)
    except OSError:
        return True


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"--input-file {name}: {error.strerror or error}.") from None


def _download(url: str) -> bytes:
    try:
        answer = httpx.get(url, timeout=TIMEOUT_S, follow_redirects=True)
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"--input-file {url}: {error}") from None
    return answer.content


def _upload(url: str, path: Path) -> None:
    """Answers took long to make: try more than once before they are given up."""
    for attempt in range(ATTEMPTS):
        try:
            answer = httpx.put(url, content=path.read_bytes(), timeout=TIMEOUT_S)
            answer.raise_for_status()
            return
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if attempt == ATTEMPTS - 1:
                raise ConfigError(
                    f"--output-file {url}: {error}. The answers are in {path}; the same command "
                    "sends them again."
                ) from None
            logger.warning("PUT %s: %s; trying again", url, error)
            time.sleep(FIRST_PAUSE_S * 2**attempt)
