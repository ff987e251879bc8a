"""Chat templates that come with requests, rendered where they can do no harm.

The sandbox of Jinja keeps a template from reaching Python, not from asking for a billion characters
or steps. So they run in a process of their own, of bounded memory, killed when it costs much.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Final

import msgspec

from vllm.entrypoints.chat_utils import render_chat
from vllm.entrypoints.openai.admission import Overloaded
from vllm.errors import BadRequest
from vllm.transformers_utils.chat_template import render_template
from vllm.utils.processor_time import processor_time_s
from vllm.utils.spawning import begin_process, undisturbed

# Of one template, in time of a processor, which is all that a template can take.
BUDGET_S: Final = 4.0
LOOK_S: Final = 0.05  # between two looks at what it has cost
START_S: Final = 300.0  # of the process; a limit that only a hang meets
MEMORY_BYTES: Final = 512 * 2**20  # beyond what the process has when it is ready


class Rendered(msgspec.Struct):
    prompt: str = ""
    error: str | None = None
    param: str | None = None


class TemplateProcess:
    """Starts with the first template. Thread-safe: one template at a time."""

    def __init__(self, special_tokens: Mapping[str, Any], budget_s: float = BUDGET_S) -> None:
        self.special_tokens = dict(special_tokens)
        self.budget_s = budget_s
        self._lock = threading.Lock()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._past_s = 0.0  # what processes that were stopped have cost
        self._pipe: Connection | None = None

    def render(self, **arguments: Any) -> str:
        """As `render_chat`, whose arguments these are but for the tokenizer.

        Raises BadRequest, and Overloaded while another template is being rendered for long.
        """
        # Whoever came before may take their time; nobody waits for more than one of them.
        before_s = self._cost_s()
        while not self._lock.acquire(timeout=LOOK_S):
            if self._cost_s() - before_s > self.budget_s:
                raise Overloaded("the chat templates of other requests take long; try again later")
        try:
            return self._render(arguments)
        finally:
            self._lock.release()

    def _render(self, arguments: dict[str, Any]) -> str:
        pipe = self._pipe or self._start()
        try:
            # Of the standard library: others have no integers of more than 64 bits.
            pipe.send_bytes(json.dumps(arguments).encode())
            before_s = self._cost_s()
            while not pipe.poll(LOOK_S):
                if self._cost_s() - before_s > self.budget_s:
                    self._stop()
                    raise BadRequest(
                        f"the chat template takes more than {self.budget_s:g} seconds of a "
                        "processor",
                        "chat_template",
                    )
            answer = msgspec.msgpack.decode(pipe.recv_bytes(), type=Rendered)
        except (EOFError, OSError):
            self._stop()
            raise BadRequest(
                "the chat template ended the process that renders templates: it takes too much "
                "memory, or calls itself too deeply",
                "chat_template",
            ) from None
        if answer.error is not None:
            raise BadRequest(answer.error, answer.param)
        return answer.prompt

    def _cost_s(self) -> float:
        """Of all templates so far."""
        process = self._process
        if process is None or process.pid is None:
            return self._past_s
        return self._past_s + processor_time_s(process.pid)

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        pipe, other = context.Pipe()
        process = context.Process(
            target=_main, args=(other, self.special_tokens), name="vllm-templates", daemon=True
        )
        with undisturbed():
            process.start()
        other.close()
        self._process, self._pipe = process, pipe
        if not pipe.poll(START_S) or not pipe.recv_bytes():
            self._stop()
            raise RuntimeError("the process for chat templates did not start")
        return pipe

    def _stop(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._past_s = self._cost_s()
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None


class _TemplateTokenizer:
    """The part of a tokenizer that rendering needs."""

    chat_template = None

    def __init__(self, special_tokens: Mapping[str, Any]) -> None:
        self._special_tokens = special_tokens

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        *,
        chat_template: str,
        tokenize: bool = False,
        **arguments: Any,
    ) -> str:
        assert not tokenize, "there is no vocabulary here"
        return render_template(conversation, chat_template, self._special_tokens, **arguments)


def _main(pipe: Connection, special_tokens: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin_process()
    tokenizer = _TemplateTokenizer(special_tokens)
    hello = [{"role": "user", "content": ""}]
    tokenizer.apply_chat_template(hello, chat_template="{{ messages }}")  # imports what it needs
    _bound_memory()
    pipe.send_bytes(b"ready")
    with suppress(EOFError):  # the server is gone
        while True:
            pipe.send_bytes(msgspec.msgpack.encode(_answer(tokenizer, pipe.recv_bytes())))


def _answer(tokenizer: Any, data: bytes) -> Rendered:
    try:
        prompt = render_chat(tokenizer, **json.loads(data))
    except BadRequest as error:
        return Rendered(error=str(error)[:2000], param=error.param)
    except MemoryError:
        return Rendered(error="the chat template takes too much memory", param="chat_template")
    except Exception as error:  # what is foreign here may fail in any way
        reason = f"the chat template cannot be rendered ({type(error).__name__})"
        return Rendered(error=reason, param="chat_template")
    assert isinstance(prompt, str), type(prompt)
    return Rendered(prompt)


def _bound_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
