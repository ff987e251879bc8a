"""Temporary."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from vllm.config.vllm import VllmConfig
from vllm.messages.engine import EngineRequest, StepUpdates


class Balance(Protocol):
    def choose(self, request: EngineRequest, usable: Collection[int]) -> tuple[int, int]: ...
    def sent(self, core: int, request: EngineRequest) -> None: ...
    def heard(self, step: StepUpdates) -> None: ...
    def restarted(self, core: int) -> None: ...


class Fewest:
    def __init__(self, n: int) -> None:
        self.num = [0] * n

    def choose(self, request: EngineRequest, usable: Collection[int]) -> tuple[int, int]:
        return min(usable, key=lambda c: self.num[c]), len(request.prompt_token_ids)

    def sent(self, core: int, request: EngineRequest) -> None:
        self.num[core] += 1

    def heard(self, step: StepUpdates) -> None: ...
    def restarted(self, core: int) -> None: ...


def make_balance(config: VllmConfig, n: int) -> Balance:
    return Fewest(n)
