"""Messages between a server and machines with other copies of its model."""

from __future__ import annotations

import msgspec

from vllm.messages.rank import Joined


class CopiesHello(msgspec.Struct, frozen=True):
    """The first message of a machine."""

    first: int  # number of its first copy
    count: int
    own_ip: str  # as VLLM_HOST_IP or Ray says; "": that of the connection
    settings: Joined


class CopiesWelcome(msgspec.Struct, frozen=True):
    front_ends: tuple[str, ...]  # where each receives what cores say
    lives: tuple[int, ...]  # of the copies, by number: the next one
    meeting: str  # word@host:port, where all copies meet that share experts; "": they share none


class CopySign(msgspec.Struct, frozen=True):
    """Sign of life of one core."""

    number: int
    life: int
    silence_s: float  # since the last one
    last_end: str = ""  # for people: how the life before ended


CopySigns = tuple[CopySign, ...]
