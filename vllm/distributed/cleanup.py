"""The end of an engine in a process that goes on."""

from __future__ import annotations

import gc


def cleanup_dist_env_and_memory(shutdown_ray: bool = False) -> None:
    """Give back what an engine that nobody holds any more has left in memory.

    There are no process groups to take down and no Ray to stop, so `shutdown_ray` changes nothing.
    """
    # Engines freeze what a start leaves, which a collection would pass over.
    gc.unfreeze()
    gc.collect()
