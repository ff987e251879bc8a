"""Messages by which engine cores come together whose copies of a model share experts."""

from __future__ import annotations

import msgspec

from vllm.messages.rank import Joined


class CoreHello(msgspec.Struct, frozen=True):
    """The first message of a core."""

    copy: int  # the number of its copy of the model
    word: str  # that its process was given for this; "": none was
    owner: str  # which process has started it
    machine: str  # cores with the same one can open each other's memory
    inbox: str  # where the others reach it
    rendezvous: str  # host:port where ranks meet, if it is the first copy; else ""
    settings: Joined


class CoreWelcome(msgspec.Struct, frozen=True):
    """To each, once all have come."""

    group: int  # the number of this life of all
    inboxes: tuple[str, ...]  # by copy
    rendezvous: str
    memory: tuple[str, ...]  # for experts, by stage; empty: they are not on one machine
