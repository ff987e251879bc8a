"""What the processes of one external launcher say to each other.

Every process plans with a scheduler of its own, so plans do not travel: their digests do.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import numpy as np

from vllm.messages.rank import Failed, Joined
from vllm.messages.step import StepPlan, StepResult


class Hello(msgspec.Struct, frozen=True):
    """The first message on a connection, to the driver."""

    rank: int
    word: str  # a random one, which the driver has given to its siblings alone
    pid: int
    node: int


class Introduction(msgspec.Struct, frozen=True):
    """What all processes show each other before any of them loads."""

    settings: Joined
    rendezvous: str  # of rank 0: as in Place
    memory: str  # of the first rank of a stage: as in Place


class Planned(msgspec.Struct, frozen=True, tag=True):
    """The sender has planned a step."""

    step: int
    digest: bytes  # equal where ranks would do the same
    num_rows: int
    num_tokens: int
    num_admissions: int

    def __str__(self) -> str:
        return (
            f"{self.num_rows} rows with {self.num_tokens} tokens, {self.num_admissions} of them new"
        )


class Drawn(msgspec.Struct, frozen=True, tag=True):
    """By the driver: what every scheduler commits."""

    result: StepResult


class Shown(msgspec.Struct, frozen=True, tag=True):
    """To the driver: what all are to see."""

    value: bytes


class AllShown(msgspec.Struct, frozen=True, tag=True):
    """By the driver, when all have shown something."""

    values: list[bytes]  # by rank


class Fault(msgspec.Struct, frozen=True, tag=True):
    """A rank has failed; no rank can go on."""

    rank: int
    failed: Failed


class Gone(msgspec.Struct, frozen=True, tag=True):
    """A rank is gone, or differs from others; no rank can go on."""

    why: str


class Left(msgspec.Struct, frozen=True, tag=True):
    """The sender has stopped its engine in order."""


Word = Planned | Drawn | Shown | AllShown | Fault | Gone | Left


def planned(plan: StepPlan) -> Planned:
    """The digest counts all that ranks do, and not the ids of requests, which may be random."""
    admissions = tuple(msgspec.structs.replace(a, request_id="") for a in plan.admissions)
    # A mask has a bit for every token of the vocabulary: a sum costs less than a digest.
    masks = plan.masks.sum(axis=1, dtype=np.int64)
    text = _ENCODER.encode(msgspec.structs.replace(plan, admissions=admissions, masks=masks))
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return Planned(plan.step, digest, plan.num_rows, plan.num_tokens, len(admissions))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, value.tobytes()]
    if isinstance(value, np.generic):
        return value.item()
    return type(value).__qualname__  # a function of the program, which is the same everywhere


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain, order="deterministic")
