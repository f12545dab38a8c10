"""Tensors as the bytes of a safetensors file: the same bytes for the same content, every time.

The format's own writer puts the entries of the header in another order each time, so that two runs with the same
result leave files that differ.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

from torch import Tensor

_ALIGNMENT = 8


def to_bytes(tensors: Mapping[str, Tensor], told: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file.

    Args:
        tensors: by name; they must be contiguous and share no memory.
        told: text to put into the header.

    Example:
        >>> import torch
        >>> from safetensors.torch import load
        >>> data = to_bytes({"x": torch.ones(2)}, {"schema": "mine/1", "index": "3"})
        >>> data == to_bytes({"x": torch.ones(2)}, {"index": "3", "schema": "mine/1"}), load(data)["x"].tolist()
        (True, [1.0, 1.0])
    """
    from safetensors.torch import save

    data = save(dict(tensors), None if told is None else dict(told))
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]
