"""Weight files: which ones a folder holds, and their tensors, memory-mapped and never executed."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from md_export.checkpoint.files import LFS_HEADER, TABLE_LIMIT, git_lfs_pointer, read_json, shown, unreadable
from md_export.checkpoint.modules import MAX_TENSORS
from md_export.checkpoint.quantized import GGUF, refuse_gguf, refuse_quantized
from md_export.errors import CheckpointError

# Names and shapes without the values; those of the full-size UNet have 0.1 MB.
_LARGEST_PICKLE: Final = 16 << 20
# Before 2020: magic number, protocol, system, content, storage keys; the values follow.
_LEGACY_PICKLES: Final = 5
_MOST_RECORDS: Final = 100_000
_ALLOWED: Final = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        *(f"torch.{kind}Storage" for kind in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half")),
        *(f"torch.{kind}Storage" for kind in ("Int", "Long", "Short")),
    }
)
# Records of a training beside the weights, in files of PyTorch Lightning: loaded as objects that hold nothing.
_RECORDS: Final = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    # The bytes of numpy's scalars; torch allows it, too.
    "_codecs.encode",
)


class _Record:
    """Stands for an object of another library, and keeps nothing of it."""

    def __new__(cls, *_: object) -> _Record:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        del state


def check_pickles(file: Path) -> None:
    """Raise :class:`CheckpointError` where the pickles in ``file`` name anything but tensors.

    Anything that is no pickle raises the errors of ``pickletools`` or ``zipfile``: ValueError, BadZipFile and others.
    """
    for stream, count in _pickles(file):
        for _ in range(count):
            for name in _globals(stream):
                if name not in _ALLOWED and name not in _RECORDS:
                    raise CheckpointError(
                        f"{file} wants to run code when it is loaded ({shown(name)}) and was refused: "
                        "ask its author for safetensors"
                    )


def _pickles(file: Path) -> Iterator[tuple[io.BytesIO, int]]:
    """Yield streams, and how many pickles each begins with."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as handle:
            yield io.BytesIO(handle.read(_LARGEST_PICKLE)), _LEGACY_PICKLES
        return
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if len(records) > _MOST_RECORDS or any(item.compress_type != zipfile.ZIP_STORED for item in records):
            raise CheckpointError(f"{file} is compressed, which torch.save never does: ask its author for safetensors")
        for item in records:
            # torch finds a name whatever its case.
            pickled = item.filename.lower().endswith(".pkl")
            if item.file_size > _LARGEST_PICKLE and (pickled or "/data/" not in item.filename):
                raise CheckpointError(f"{file} has {item.file_size:,} bytes beside its values: replace it")
            if pickled:
                yield io.BytesIO(archive.read(item)), 1


def _globals(stream: io.BytesIO) -> Iterator[str]:
    """Yield everything callable that one pickle names, as ``module.name``."""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".", 1)
        elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            yield f"{opcode.name} {argument or ''}".strip()


_INDEX: Final = ".index.json"
_SUFFIXES: Final = (".safetensors", ".safetensors" + _INDEX, ".bin", ".bin" + _INDEX)
# transformers' names; diffusers' files of both kinds have one.
_TEXT_ENCODER_STEMS: Final[Mapping[str, str]] = {".safetensors": "model", ".bin": "pytorch_model"}
# The hub's half-precision files have the second.
_VARIANTS: Final = ("", ".fp16")
# Errors that torch's restricted unpickler raised in tests on files with a few bytes changed.
_DAMAGED: Final = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError)
_MALFORMED: Final = (TypeError, ValueError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError)
# safetensors itself reads headers of 100 MB; those of the largest model that is read have 2 MB.
_LARGEST_HEADER: Final = 8 << 20
# Whole numbers that are no weights.
_COUNTS: Final = ("position_ids", ".alpha", ".num_updates")
_DTYPES: Final = (
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


@dataclass(frozen=True)
class WeightSet:
    """The weight files of one component folder; ``where`` maps tensor → file if an index says so."""

    files: tuple[Path, ...]
    index: Path | None = None
    where: Mapping[str, str] | None = None

    def read(self) -> dict[str, Tensor]:
        """Return every tensor by its stored name, memory-mapped, in any float dtype."""
        if self.where is None:
            return read_tensors(self.files[0])
        tensors: dict[str, Tensor] = {}
        for file in self.files:
            found = read_tensors(file)
            for name in (name for name, shard in self.where.items() if shard == file.name):
                if name not in found:
                    raise CheckpointError(
                        f"{self.index} places {shown(name)} in {file.name}, which does not hold it: "
                        "the shards and the index are of different downloads, get them again"
                    )
                tensors[name] = found[name]
        return tensors


def weight_names(folder: str) -> tuple[str, ...]:
    """Return the file names that may hold the weights of ``folder``, in the order in which they are tried."""
    stems = _TEXT_ENCODER_STEMS if folder.startswith("text_encoder") else {}
    return tuple(
        stems.get(suffix.removesuffix(_INDEX), "diffusion_pytorch_model") + variant + suffix
        for suffix in _SUFFIXES
        for variant in _VARIANTS
    )


def find_weights(root: Path, folder: str) -> WeightSet | None:
    """Return the weights of ``root/folder``, or ``None`` if it holds none."""
    for name in weight_names(folder):
        path = root / folder / name
        if path.is_file():
            return _sharded(path) if name.endswith(_INDEX) else WeightSet((path,))
    for path in sorted((root / folder).glob("*.gguf")):
        refuse_gguf(str(path))
    return None


def _sharded(index: Path) -> WeightSet:
    where = read_json(index, TABLE_LIMIT).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise CheckpointError(f"{index} holds no weight_map of tensor names to file names: replace it")
    if len(where) > MAX_TENSORS:
        raise CheckpointError(f"{index} lists {len(where):,} tensors; at most {MAX_TENSORS:,} are read: replace it")
    shards = sorted(set(where.values()))
    for shard in shards:
        # A plain name only: "../x", "/x" or "sub/x" would read outside the folder that was given.
        if PurePosixPath(shard).name != shard or "\\" in shard or not shard.endswith((".safetensors", ".bin")):
            raise CheckpointError(
                f"{index} names the shard {shown(shard)!r}, which is not a file of its folder: refused"
            )
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{index.parent / shard} is missing, though {index.name} names it: download it")
    return WeightSet(tuple(index.parent / shard for shard in shards), index, where)


def read_tensors(file: Path, name: str | None = None) -> dict[str, Tensor]:
    """Return every tensor of a file by its stored name, memory-mapped; raises :class:`CheckpointError`.

    ``name``: what errors call the file; its path by default.
    """
    where = name or str(file)
    tensors: dict[str, Tensor] = {}
    values = stored_values(file, name)
    refuse_quantized(values.keys(), where)
    for key, tensor in values.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{where} holds no flat table of names to tensors: save it again as torch.save(model.state_dict(), …)"
            )
        check_stored(tensor, key, where)
        if not is_weight(tensor) and not (tensor.dtype in (torch.int32, torch.int64) and key.endswith(_COUNTS)):
            stored = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{where} stores {shown(key)} as {stored}; only float8, float16, bfloat16, float32 and float64 weights "
                "are read: give the checkpoint as it was before quantization"
            )
        tensors[key] = tensor
    return tensors


def is_weight(tensor: Tensor) -> bool:
    """Whether a tensor is of a type that weights are read in."""
    return tensor.dtype in _DTYPES


def check_stored(tensor: Tensor, key: str, where: str) -> None:
    """Raise :class:`CheckpointError` for a tensor that is not all of its values, one after the other, on the CPU."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise CheckpointError(f"{where} stores {shown(key)} as {tensor.layout} on {tensor.device}: save it again dense")
    # A stride of 0 makes 10⁹ elements of four bytes.
    if tensor.untyped_storage().nbytes() < tensor.nbytes:
        raise CheckpointError(
            f"{where} stores {shown(key)}, {list(tensor.shape)}, in {tensor.untyped_storage().nbytes():,} bytes, "
            "which are too few: save it again with tensor.contiguous()"
        )


def stored_values(file: Path, name: str | None = None) -> Mapping[str, object]:
    """Return what a file holds by name: tensors, memory-mapped, and what else a file of torch's has beside them.

    Raises:
        CheckpointError: it cannot be read, wants to run code, or is no table of names.
    """
    where = name or str(file)
    try:
        with file.open("rb") as handle:
            start = handle.read(len(LFS_HEADER))
            if start == LFS_HEADER:
                git_lfs_pointer(where)
            if start.startswith(GGUF):
                refuse_gguf(where)
        return _read_safetensors(file, where) if file.suffix == ".safetensors" else _read_torch(file)
    except OSError as error:
        unreadable(where, error)


def read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file that :func:`read_tensors` has read."""
    with safe_open(file, framework="pt", device="cpu") as handle:
        return dict(handle.metadata() or {})


def _read_safetensors(file: Path, where: str) -> dict[str, Tensor]:
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
    if file.stat().st_size > length > _LARGEST_HEADER:
        raise CheckpointError(f"{where} has a header of {length:,} bytes, which no such file has: replace it")
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise CheckpointError(
            f"{where} is truncated or damaged ({str(error).splitlines()[0]}): copy or download it again"
        ) from error


def _read_torch(file: Path) -> dict[str, object]:
    # torch maps its zip format only; its format of before 2020 is read into memory.
    try:
        check_pickles(file)
        with torch.serialization.safe_globals([(_Record, name) for name in _RECORDS]):
            content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (*_DAMAGED, *_MALFORMED) as error:
        raise CheckpointError(f"{file} is truncated or damaged: copy or download it again") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(
            f"{file} holds no flat table of names to tensors: save it again as torch.save(model.state_dict(), …)"
        )
    return content
