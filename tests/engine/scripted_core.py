"""An engine core without a model: every request gets the tokens of a script."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vllm.config.vllm import VllmConfig
from vllm.errors import ConfigError
from vllm.messages.engine import (
    Abort,
    Call,
    CallResult,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestUpdate,
    StepUpdates,
    ToEngine,
)
from vllm.messages.step import LogprobArrays

Script = Callable[[EngineRequest], list[int]]


def counting(request: EngineRequest) -> list[int]:
    """Tokens from 100 on, as many as are asked for."""
    assert request.params.max_tokens is not None
    return list(range(100, 100 + request.params.max_tokens))


def logprobs_of(tokens: list[int], k: int) -> LogprobArrays:
    """The token is the second most likely of k > 1, at -1.0; else the first, at -0.5."""
    ids = np.array([[token, *range(token - 1, token - 1 + k)] for token in tokens], np.int32)
    row = [-1.0 if k > 1 else -0.5, *(-0.5 - 0.5 * i for i in range(k))]
    return LogprobArrays(
        ids,
        np.array([row] * len(tokens), np.float32),
        np.full(len(tokens), 2 if k > 1 else 1, np.int32),
    )


class ScriptedCore:
    """One token per request and step, until its script or max_tokens ends."""

    def __init__(self, config: VllmConfig, script: Script = counting, step_s: float = 0.0) -> None:
        self.config = config
        self.script = script
        self.step_s = step_s
        self.ready = EngineReady(num_blocks=1, block_size=16, start_s=0.0)
        self.requests: dict[str, tuple[EngineRequest, list[int], int]] = {}
        self.seen: list[EngineRequest] = []
        self.slots: dict[str, int] = {}  # of requests that have had a token
        self.is_terse = True  # as the engine core is, about requests to which nothing else happens
        self.aborted: list[str] = []
        self.num_steps = 0
        self.stopped = False

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def step_with_others(self, tell: Callable[[int], None]) -> None:
        """It needs nobody."""

    def handle(self, message: ToEngine) -> CallResult | None:
        if isinstance(message, EngineRequest):
            assert message.request_id not in self.requests
            self.requests[message.request_id] = (message, self.script(message), 0)
            self.seen.append(message)
        elif isinstance(message, Abort):
            self.aborted += message.request_ids
            for request_id in message.request_ids:
                self.requests.pop(request_id, None)
        elif isinstance(message, Call):
            return self._call(message)
        return None

    def step(self) -> StepUpdates | None:
        time.sleep(self.step_s)
        self.num_steps += 1
        updates = [self._update(request_id) for request_id in list(self.requests)]
        stats = EngineStats(num_running=len(self.requests), num_steps=self.num_steps)
        events = [update for update in updates if not self._is_steady(update)]
        steady = [update for update in updates if self._is_steady(update)]
        for update in events:
            update.slot = self.slots.setdefault(update.request_id, 1 + len(self.slots))
        return StepUpdates(
            events,
            stats,
            time.monotonic(),
            np.array([self.slots[update.request_id] for update in steady], np.int32),
            np.array([update.token_ids[0] for update in steady], np.int32),
        )

    def _is_steady(self, update: RequestUpdate) -> bool:
        """There is a token and nothing else to tell of a request whose slot is known."""
        if not self.is_terse:
            return False
        bare = RequestUpdate(update.request_id, update.token_ids[:1], slot=update.slot)
        return len(bare.token_ids) == 1 and update == bare and update.request_id in self.slots

    def check_health(self) -> None:
        """A script has no ranks to lose."""

    def stop(self) -> None:
        self.stopped = True

    def _update(self, request_id: str) -> RequestUpdate:
        request, script, done = self.requests[request_id]
        token = script[done]
        update = RequestUpdate(request_id, [token])
        if request.params.logprobs is not None:
            update.logprobs = logprobs_of([token], request.params.logprobs)
        if request.params.prompt_logprobs is not None and done == 0:
            update.prompt_logprobs = logprobs_of(
                request.prompt_token_ids[1:], request.params.prompt_logprobs
            )
        if token in (request.params.stop_token_ids or ()):
            update.finish_reason, update.stop_reason = FinishReason.STOP, token
        elif done + 1 == min(len(script), request.params.max_tokens or 0):
            update.finish_reason = FinishReason.LENGTH
        if update.finish_reason is None:
            self.requests[request_id] = (request, script, done + 1)
        else:
            del self.requests[request_id]
        return update

    def _call(self, call: Call) -> CallResult:
        calls: dict[str, Callable[..., Any]] = {
            "reset_prefix_cache": lambda: not self.requests,
            "num_requests": lambda: len(self.requests),
            "echo": lambda *args: list(args),
        }
        if call.method == "crash":
            raise RuntimeError("crash was called")
        if call.method not in calls:
            return CallResult(call.call_id, error=f"NotAvailable: there is no {call.method}")
        return CallResult(call.call_id, calls[call.method](*call.args))


def make_slow_core(config: VllmConfig) -> ScriptedCore:
    return ScriptedCore(config, step_s=0.01)


class ShiftedCore(ScriptedCore):
    """Has the clock of another machine, which was started later."""

    def step(self) -> StepUpdates | None:
        updates = super().step()
        if updates is not None:
            updates.time_s -= 1e6
        return updates


def make_shifted_core(config: VllmConfig) -> ScriptedCore:
    return ShiftedCore(config, step_s=0.01)


def make_broken_core(config: VllmConfig) -> ScriptedCore:
    raise ConfigError("--gpu-memory-utilization 0.1: too little. Raise it.")


def make_crashing_core(config: VllmConfig) -> ScriptedCore:
    raise RuntimeError("no such luck")
