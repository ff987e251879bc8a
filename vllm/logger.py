"""One logger per module, one readable line per event."""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import Any, Final

from vllm import envs

_ROOT: Final = "vllm"
_COLOURS: Final = {
    logging.DEBUG: "\x1b[90m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_RESET: Final = "\x1b[0m"


class LineFormatter(logging.Formatter):
    """`INFO 11-21 02:30:00 [engine.core] text`; the level in colour if asked."""

    def __init__(self, colour: bool) -> None:
        super().__init__(datefmt="%m-%d %H:%M:%S")
        self.colour = colour

    def formatMessage(self, record: logging.LogRecord) -> str:
        module = record.name.removeprefix(_ROOT + ".")
        level = record.levelname
        if self.colour and record.levelno in _COLOURS:
            level = f"{_COLOURS[record.levelno]}{level}{_RESET}"
        return f"{level} {self.formatTime(record, self.datefmt)} [{module}] {record.message}"


class Logger(logging.Logger):
    """A logger that can also say a thing only once in the life of the process."""

    def info_once(self, text: str, *args: Any) -> None:
        if self._is_first(logging.INFO, text, args):
            self.info(text, *args, stacklevel=2)

    def warning_once(self, text: str, *args: Any) -> None:
        if self._is_first(logging.WARNING, text, args):
            self.warning(text, *args, stacklevel=2)

    def _is_first(self, level: int, text: str, args: tuple[Any, ...]) -> bool:
        key = (self.name, level, text, tuple(str(arg) for arg in args))
        if key in _said:
            return False
        _said.add(key)
        return True


_said: set[tuple[Any, ...]] = set()


def init_logger(name: str) -> Logger:
    """The logger of a module: call with `__name__`. Sets logging up at the first call."""
    _configure()
    # A name that something took before us with a plain logger would stay plain: take it over.
    previous = logging.getLoggerClass()
    logging.setLoggerClass(Logger)
    try:
        logger = logging.getLogger(name)
    finally:
        logging.setLoggerClass(previous)
    if not isinstance(logger, Logger):
        logging.Logger.manager.loggerDict.pop(name)
        return init_logger(name)
    return logger


def tag_process(name: str) -> None:
    """Show `name` in every line of this process, where several write to one terminal."""
    for handler in logging.getLogger(_ROOT).handlers:
        if isinstance(handler.formatter, LineFormatter):
            handler.setFormatter(_TaggedFormatter(handler.formatter.colour, name))


class _TaggedFormatter(LineFormatter):
    def __init__(self, colour: bool, tag: str) -> None:
        super().__init__(colour)
        self.tag = tag

    def formatMessage(self, record: logging.LogRecord) -> str:
        return f"({self.tag}) {super().formatMessage(record)}"


@cache
def _configure() -> None:
    if not envs.VLLM_CONFIGURE_LOGGING:
        return
    root = logging.getLogger(_ROOT)
    if sys.stderr is None:  # closed by whoever started this process
        root.addHandler(logging.NullHandler())
    else:
        handler = logging.StreamHandler(sys.stderr)
        colour = sys.stderr.isatty() and envs.inherited("NO_COLOR") is None
        handler.setFormatter(LineFormatter(colour))
        root.addHandler(handler)
    root.setLevel(envs.VLLM_LOGGING_LEVEL)
    root.propagate = False
