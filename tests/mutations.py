"""Ways to break an export on purpose; every gate must notice each of them."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from md_export.artifact import bytes_of_artifact, read_manifest, sha256_of_artifact, write_manifest


def weight_file(out: Path, component: str) -> Path:
    """The file that holds the component's weights."""
    entry = next(item for item in read_manifest(out).artifacts if item.component == component)
    path = out / entry.file
    return next(path.rglob("weight.bin")) if path.is_dir() else path


def flip_block(path: Path, size: int = 4096) -> None:
    """Invert ``size`` bytes in the middle of a weight file."""
    content = bytearray(path.read_bytes())
    start = len(content) // 2 // 64 * 64
    block = np.frombuffer(bytes(content[start : start + size]), np.uint8)
    content[start : start + size] = np.bitwise_not(block).tobytes()
    path.write_bytes(content)


def rehash(out: Path) -> None:
    """Make the manifest agree with the files, as an attacker or a careless script would."""
    manifest = read_manifest(out)
    entries = tuple(
        dataclasses.replace(
            entry, sha256=sha256_of_artifact(out / entry.file), bytes=bytes_of_artifact(out / entry.file)
        )
        for entry in manifest.artifacts
    )
    write_manifest(dataclasses.replace(manifest, artifacts=entries), out)


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON object in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def claim_another_checkpoint(out: Path, component: str) -> None:
    """Make an artifact's own notes name a checkpoint that differs from the manifest's; its weights stay as they are."""
    manifest = read_manifest(out)
    path = out / next(item.file for item in manifest.artifacts if item.component == component)
    mine, other = manifest.checkpoint_sha256.encode(), b"0" * 64
    files = [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    holding = [file for file in files if mine in file.read_bytes()]
    assert holding, f"{path} does not hold the checkpoint's hash"
    for file in holding:
        file.write_bytes(file.read_bytes().replace(mine, other))


def put_nan(path: Path) -> None:
    """Overwrite the first value of one stored float weight with NaN; the rest of the file stays as it is."""
    content = bytearray(path.read_bytes())
    start, nan = {".bin": _in_weight_bin, ".tflite": _in_tflite, ".onnx": _in_onnx}[path.suffix](path, bytes(content))
    content[start : start + len(nan)] = nan
    path.write_bytes(content)


def deepen_mask(path: Path) -> None:
    """Set the causal mask of a float16 ``weight.bin`` from -10000 to -65504: still finite, until scores are added."""
    values = np.fromfile(path, np.uint16)
    masked = values == np.float16(-10000).view(np.uint16)
    assert masked.sum() == 77 * 76 / 2
    values[masked] = np.float16(-65504).view(np.uint16)
    values.tofile(path)


def _in_weight_bin(path: Path, content: bytes) -> tuple[int, bytes]:
    """The first float16 record of Core ML's weight file: sentinel, type 1, size, offset."""
    for place in range(64, len(content) - 24, 64):
        sentinel, kind, _, offset = struct.unpack_from("<IIQQ", content, place)
        if (sentinel, kind) == (0xDEADBEEF, 1):
            return offset, np.float16(np.nan).tobytes()
    raise AssertionError(f"{path} holds no float16 weight")


def _in_tflite(path: Path, content: bytes) -> tuple[int, bytes]:
    from md_export.targets.tflite.flatbuffer import DTYPES, data_of, read_model

    model = read_model(path)
    floats = [t for graph in model.subgraphs for t in graph.tensors if DTYPES.get(t.type) == "float32"]
    raw = max((data_of(model, tensor).tobytes() for tensor in floats), key=len)
    return content.index(raw), np.float32(np.nan).tobytes()


def _in_onnx(path: Path, content: bytes) -> tuple[int, bytes]:
    import onnx

    raw = max((t.raw_data for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT), key=len)
    return content.index(raw), np.float32(np.nan).tobytes()
