"""Content hashes of full blocks, chained so that equal hashes mean equal prefixes."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.core.request import Request

# 128 bits of a cryptographic hash: users cannot construct a collision to read each other's cache,
# and by accident one in 2**64 blocks would.
DIGEST_BYTES = 16


def root_hash(request: Request) -> bytes:
    """Start of the chain: everything besides tokens that the keys and values depend on.

    Requests with different salts never share blocks. What concerns some blocks only, as an image
    does, must join their own hashes: requests then share the blocks before it.
    """
    salt = request.source.cache_salt
    return blake2b(
        b"" if salt is None else b"salt:" + salt.encode(), digest_size=DIGEST_BYTES
    ).digest()


def extend_hashes(request: Request, block_size: int) -> None:
    """Append the hashes of the blocks that `request.tokens` has filled since the last call."""
    hashes = request.block_hashes
    num_full = request.num_tokens // block_size
    if len(hashes) >= num_full:
        return
    parent = hashes[-1] if hashes else root_hash(request)
    for i in range(len(hashes), num_full):
        tokens = request.tokens.view(i * block_size, (i + 1) * block_size)
        parent = blake2b(tokens.tobytes(), key=parent, digest_size=DIGEST_BYTES).digest()
        hashes.append(parent)
