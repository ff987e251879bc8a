"""Absent: for training."""

raise ImportError(f"{__name__} is for training, which is not emulated")
