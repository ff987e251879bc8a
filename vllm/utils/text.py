"""Words for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Final

CLOSE: Final = 0.72  # share of letters in common; flags of unrelated meaning reach 0.7


def did_you_mean(word: Any, known: Iterable[Any]) -> str:
    """' Did you mean x?', or nothing when no known word is close."""
    close = difflib.get_close_matches(str(word), [str(item) for item in known], n=1, cutoff=CLOSE)
    return f" Did you mean {close[0]}?" if close else ""
