"""What copies of a model agree on when they run every launch together.

They do where ranks of one copy have experts for tokens of another: every rank must then take part
in every launch of any of them, with as many tokens as devices and graphs need.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vllm.device.launch import Launch, ShapeKey


class LaunchSize(NamedTuple):
    """What others need to know of a launch."""

    key: ShapeKey
    num_tokens: int


class JoinedLaunch(NamedTuple):
    """A rank's part in a launch of all copies."""

    launch: Launch
    num_tokens: int  # of the copy with the most


@dataclass(slots=True)
class AgreedTokens:
    """The tokens of the launch that runs, of the copy with the most.

    Layers that exchange tokens read it. 0, at other times and during warm-up: every copy has as
    many as this rank.
    """

    count: int = 0
    is_decode: bool = False  # every row of every copy has one token; graphs may be captured


class Agreement:
    """Of a copy that runs alone: all is as it has planned."""

    def joined(self, launches: Sequence[Launch]) -> Iterable[Launch]:
        """The launches that this rank runs for its own `launches` of a step, one by one.

        A rank asks for the next one once it has queued the last.
        """
        return launches

    @property
    def is_idle(self) -> bool:
        """Whether no copy had anything to launch in the last step."""
        return False
