from tests.hpu_emulator.conftest import emulated

__all__ = ["emulated"]
