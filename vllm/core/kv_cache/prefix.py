"""Content hashes of full blocks, chained so that equal hashes mean equal prefixes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vllm.core.request import Request

# 128 bits of a cryptographic hash: users cannot construct a collision to read each other's cache,
# and by accident one in 2**64 blocks would.
DIGEST_BYTES: Final = 16
TOKEN_BYTES: Final = 4  # int32


def root_hash(cache_salt: str | None) -> bytes:
    """Start of the chain: everything besides tokens that the keys and values depend on.

    Requests with different salts never share blocks. What concerns some blocks only, as an image
    does, must join their own hashes: requests then share the blocks before it.
    """
    salt = b"" if cache_salt is None else b"salt:" + cache_salt.encode()
    return blake2b(salt, digest_size=DIGEST_BYTES).digest()


def prompt_hashes(
    token_ids: Sequence[int], block_size: int, cache_salt: str | None
) -> Iterator[bytes]:
    """Hashes of the full blocks of a prompt, as a scheduler will name them: one by one."""
    num_tokens = len(token_ids) // block_size * block_size
    data = array("i", token_ids[:num_tokens]).tobytes()
    return _chain(root_hash(cache_salt), data, block_size)


def extend_hashes(request: Request, block_size: int) -> None:
    """Append the hashes of the blocks that `request.tokens` has filled since the last call."""
    hashes = request.block_hashes
    num_full = request.num_tokens // block_size
    if len(hashes) >= num_full:
        return
    parent = hashes[-1] if hashes else root_hash(request.source.cache_salt)
    tokens = request.tokens.view(len(hashes) * block_size, num_full * block_size)
    hashes.extend(_chain(parent, tokens.tobytes(), block_size))


def _chain(parent: bytes, data: bytes, block_size: int) -> Iterator[bytes]:
    """Hashes of the blocks after `parent`, whose tokens are `data`, int32."""
    block_bytes = block_size * TOKEN_BYTES
    for begin in range(0, len(data), block_bytes):
        block = data[begin : begin + block_bytes]
        parent = blake2b(block, key=parent, digest_size=DIGEST_BYTES).digest()
        yield parent
