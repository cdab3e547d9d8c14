"""Find weight files in a folder and read their tensors, memory-mapped and without executing code."""

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

# Limit of the pickle with names and shapes, without values; that of the full-size UNet has 0.1 MB.
_LARGEST_PICKLE: Final = 16 << 20
# Pickles in torch's format from before 2020: magic number, protocol, system, content, storage keys; then the values.
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
# Training records in files of PyTorch Lightning; they are loaded as empty objects.
_RECORDS: Final = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    # Used for numpy's scalars; torch allows it too.
    "_codecs.encode",
)


class _Record:
    """Empty placeholder for an object of another library."""

    def __new__(cls, *_: object) -> _Record:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        del state


def check_pickles(file: Path) -> None:
    """Raise :class:`CheckpointError` if the pickles in ``file`` name anything except tensors.

    A file without pickles raises the errors of ``pickletools`` or ``zipfile``: ValueError, BadZipFile and others.
    """
    for stream, count in _pickles(file):
        for _ in range(count):
            for name in _globals(stream):
                if name not in _ALLOWED and name not in _RECORDS:
                    raise CheckpointError(
                        f"{file} would run code when it is loaded ({shown(name)}) and was refused: "
                        "ask its author for safetensors"
                    )


def _pickles(file: Path) -> Iterator[tuple[io.BytesIO, int]]:
    """Yield streams, each with the number of pickles at its start."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as handle:
            yield io.BytesIO(handle.read(_LARGEST_PICKLE)), _LEGACY_PICKLES
        return
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if len(records) > _MOST_RECORDS or any(item.compress_type != zipfile.ZIP_STORED for item in records):
            raise CheckpointError(f"{file} is compressed, which torch.save never does: ask its author for safetensors")
        for item in records:
            # torch ignores the case of names.
            pickled = item.filename.lower().endswith(".pkl")
            if item.file_size > _LARGEST_PICKLE and (pickled or "/data/" not in item.filename):
                raise CheckpointError(f"{file} has {item.file_size:,} bytes beside its values: replace it")
            if pickled:
                yield io.BytesIO(archive.read(item)), 1


def _globals(stream: io.BytesIO) -> Iterator[str]:
    """Yield every callable that a pickle names, as ``module.name``."""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".", 1)
        elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            yield f"{opcode.name} {argument or ''}".strip()


_INDEX: Final = ".index.json"
_SUFFIXES: Final = (".safetensors", ".safetensors" + _INDEX, ".bin", ".bin" + _INDEX)
# Names of transformers' files; diffusers uses the same stem for both kinds.
_TEXT_ENCODER_STEMS: Final[Mapping[str, str]] = {".safetensors": "model", ".bin": "pytorch_model"}
# Half-precision files on the hub have the second.
_VARIANTS: Final = ("", ".fp16")
# Errors that torch's restricted unpickler raised in tests on files with a few bytes changed.
_DAMAGED: Final = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError)
_MALFORMED: Final = (TypeError, ValueError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError)
# safetensors reads headers of up to 100 MB; that of the largest supported model has 2 MB.
_LARGEST_HEADER: Final = 8 << 20
# Names of integer tensors that are not weights.
_COUNTS: Final = ("position_ids", ".alpha", ".num_updates")
_DTYPES: Final = (
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


@dataclass(frozen=True)
class WeightSet:
    """Weight files of one component folder; ``where`` maps tensors to files if an index exists."""

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
                        f"{self.index} places {shown(name)} in {file.name}, which does not contain it: "
                        "the shards and the index are from different downloads, download them again"
                    )
                tensors[name] = found[name]
        return tensors


def weight_names(folder: str) -> tuple[str, ...]:
    """Return the possible names of the weight files of ``folder``, in the order in which they are tried."""
    stems = _TEXT_ENCODER_STEMS if folder.startswith("text_encoder") else {}
    return tuple(
        stems.get(suffix.removesuffix(_INDEX), "diffusion_pytorch_model") + variant + suffix
        for suffix in _SUFFIXES
        for variant in _VARIANTS
    )


def find_weights(root: Path, folder: str) -> WeightSet | None:
    """Return the weight files of ``root/folder``; None if it has none."""
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
        raise CheckpointError(f"{index} lists {len(where):,} tensors; the limit is {MAX_TENSORS:,}: replace it")
    shards = sorted(set(where.values()))
    for shard in shards:
        # Only a plain name: "../x", "/x" or "sub/x" would read outside the given folder.
        if PurePosixPath(shard).name != shard or "\\" in shard or not shard.endswith((".safetensors", ".bin")):
            raise CheckpointError(
                f"{index} names the shard {shown(shard)!r}, which is not a file of its folder: refused"
            )
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{index.parent / shard} is missing, though {index.name} names it: download it")
    return WeightSet(tuple(index.parent / shard for shard in shards), index, where)


def read_tensors(file: Path, name: str | None = None) -> dict[str, Tensor]:
    """Return every tensor of a file by its stored name, memory-mapped.

    ``name``: name of the file in errors; its path by default.

    Raises:
        CheckpointError: the file cannot be read, or has a tensor of an unsupported type.
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
                "are read: give the checkpoint from before quantization"
            )
        tensors[key] = tensor
    return tensors


def is_weight(tensor: Tensor) -> bool:
    """Return whether a tensor has a dtype that is supported for weights."""
    return tensor.dtype in _DTYPES


def check_stored(tensor: Tensor, key: str, where: str) -> None:
    """Raise :class:`CheckpointError` for a tensor that is sparse, not on the CPU, or larger than its storage."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise CheckpointError(f"{where} stores {shown(key)} as {tensor.layout} on {tensor.device}: save it again dense")
    # With a stride of 0, four bytes of storage could become 10⁹ elements.
    if tensor.untyped_storage().nbytes() < tensor.nbytes:
        raise CheckpointError(
            f"{where} stores {shown(key)}, {list(tensor.shape)}, in {tensor.untyped_storage().nbytes():,} bytes, "
            "too few for this shape: save it again with tensor.contiguous()"
        )


def stored_values(file: Path, name: str | None = None) -> Mapping[str, object]:
    """Return a file's values by name: memory-mapped tensors, and other values in a torch file.

    Raises:
        CheckpointError: the file cannot be read, would run code, or is not a table of names.
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
        raise CheckpointError(f"{where} has a header of {length:,} bytes, above the limit for such files: replace it")
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise CheckpointError(
            f"{where} is truncated or damaged ({str(error).splitlines()[0]}): copy or download it again"
        ) from error


def _read_torch(file: Path) -> dict[str, object]:
    # torch can map only its zip format; files in its format from before 2020 are read into memory.
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
