"""Internals of the emulated HPU, and what tests ask it (see docs/hpu_emulator.md)."""

import torch  # noqa: F401  the native module is linked to its libraries
