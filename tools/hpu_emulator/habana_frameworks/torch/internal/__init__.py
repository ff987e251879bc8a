"""Internals of the bridge that programs use."""
