"""Internals of the emulated HPU, and what tests ask it (see docs/hpu_emulator.md)."""
