"""Puts pictures into one labelled-by-order sheet and writes it as PNG (standard library only)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def sheet(rows: list[NDArray[np.float32]], zoom: int = 2, gap: int = 4) -> NDArray[np.uint8]:
    """Rows of pictures [N, H, W, 3] in [0, 1] -> one picture [.., .., 3] in uint8."""
    lines = [np.concatenate([_framed(picture, gap) for picture in row], 1) for row in rows]
    whole = np.concatenate(lines, 0).repeat(zoom, 0).repeat(zoom, 1)
    picture: NDArray[np.uint8] = (whole.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return picture


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Writes an RGB picture [H, W, 3]."""
    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 6)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))


def _framed(picture: NDArray[np.float32], gap: int) -> NDArray[np.float32]:
    return np.pad(picture, ((0, gap), (0, gap), (0, 0)), constant_values=1)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
