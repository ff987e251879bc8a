from __future__ import annotations

import gc

import pytest

from vllm.utils.lasting_imports import lasting_imports


def test_what_was_imported_is_set_aside_and_collection_goes_on_even_after_a_failure() -> None:
    before = gc.get_freeze_count()
    try:
        with pytest.raises(ImportError), lasting_imports():
            assert not gc.isenabled()
            kept = [[number] for number in range(1000)]
            raise ImportError("none")
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(kept)
    finally:
        gc.unfreeze()
