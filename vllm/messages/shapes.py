"""What a rank tells of the shapes that its device prepares."""

from __future__ import annotations

import msgspec


class ShapeUsage(msgspec.Struct, array_like=True):
    """What became of the launches of one prepared shape since the start."""

    phase: str  # prefill or decode
    rows: int
    query_len: int
    blocks: int
    hits: int = 0  # launches that were not rehearsals
    tokens: int = 0  # of requests
    padding_tokens: int = 0
    used_blocks: int = 0  # of requests; of context, where the phase is prefill
    padding_blocks: int = 0
    compile_s: float = 0.0  # rehearsing it, and launches that came before any rehearsal
    graph_bytes: int = 0  # device memory that capturing it took

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.query_len}x{self.blocks}"
