"""Where the processes of one engine meet."""

from __future__ import annotations

from typing import NamedTuple


class Addresses(NamedTuple):
    """What comes to the core has one address; what leaves it has one per front end."""

    directory: str  # they are in, and other files that processes share
    to_core: str  # bound by the core
    from_core: tuple[str, ...]  # each bound by its front end
