"""The wire format of every message between our processes: msgpack through msgspec, never pickle.

Arrays travel as an extension value, so that they also survive inside fields typed `Any`; so do
functions, with the leave that vllm.messages.functions asks for.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar

import msgspec
import numpy as np

from vllm.messages import functions
from vllm.sampling_params import refuse_on_wire

T = TypeVar("T")

_NDARRAY, _FUNCTION = 1, 2  # msgpack extension codes


def _encode_array(array: np.ndarray) -> msgspec.msgpack.Ext:
    if array.dtype.hasobject:
        raise TypeError(f"an array of {array.dtype} cannot be sent to another process")
    dtype = array.dtype.str.encode()
    header = struct.pack(f"<BB{array.ndim}q", len(dtype), array.ndim, *array.shape) + dtype
    return msgspec.msgpack.Ext(_NDARRAY, header + array.tobytes())


def _decode_array(data: memoryview) -> np.ndarray:
    dtype_length, ndim = data[0], data[1]
    at = 2 + 8 * ndim
    shape = struct.unpack_from(f"<{ndim}q", data, 2)
    dtype = np.dtype(bytes(data[at : at + dtype_length]).decode())
    # A copy, because the message puts the numbers at any offset and is reused or freed afterwards.
    array: np.ndarray = np.frombuffer(data[at + dtype_length :], dtype).reshape(shape).copy()
    return array


def _enc_hook(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _encode_array(value)
    if isinstance(value, np.generic):
        return value.item()
    if callable(value) and functions.may_travel():
        return msgspec.msgpack.Ext(_FUNCTION, functions.packed(value))
    return refuse_on_wire(value)


def _dec_hook(expected: type, value: Any) -> Any:
    if isinstance(value, expected):
        return value
    raise TypeError(f"expected {expected.__qualname__}, got {type(value).__qualname__}")


def _ext_hook(code: int, data: memoryview) -> Any:
    if code == _NDARRAY:
        return _decode_array(data)
    if code == _FUNCTION:
        return functions.unpacked(data)
    raise ValueError(f"unknown msgpack extension {code}")


def encoder() -> msgspec.msgpack.Encoder:
    """Encodes messages.

    Raises NotAvailable on a function without leave, TypeError on other strangers.
    """
    return msgspec.msgpack.Encoder(enc_hook=_enc_hook)


def decoder(message: type[T] | Any) -> msgspec.msgpack.Decoder[T]:
    """Decodes messages of type `message`, a struct or a union of tagged structs.

    Arrays come back writable and own their memory. Raises msgspec.ValidationError on another type.
    """
    return msgspec.msgpack.Decoder(message, dec_hook=_dec_hook, ext_hook=_ext_hook)
