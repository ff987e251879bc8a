"""What the strict switches raise."""

from __future__ import annotations


class StrictError(RuntimeError):
    """Something a strict switch forbids."""


class HostSyncError(StrictError):
    """The host waited for the device."""


class RecompilationError(StrictError):
    """A recipe was needed that was not known."""


class IndexRangeError(StrictError, IndexError):
    """An index outside of its dimension."""


class DtypeFlipError(StrictError):
    """A graph was asked for with tensors of other dtypes than it was captured with."""
