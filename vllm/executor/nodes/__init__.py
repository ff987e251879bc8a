"""Ranks on several machines: node 0 has the executor, every other node an agent for its ranks."""
