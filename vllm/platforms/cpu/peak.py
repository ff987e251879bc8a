"""How much memory tensors take at their peak."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakTensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Peak bytes of the tensors that ops create while this mode is on.

    Independent of the device's allocator. Scratch memory inside native ops is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch guards every op against its compiler, which takes 1.5 s to import.
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        known = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), known)
        return out

    def _count(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        address, nbytes = storage.data_ptr(), storage.nbytes()
        if address == 0 or address in known or address in self._alive:
            return

        def gone(_: weakref.ref[Any]) -> None:
            del self._alive[address]
            self._now -= nbytes

        self._alive[address] = weakref.ref(storage, gone)
        self._now += nbytes
        self.peak = max(self.peak, self._now)
