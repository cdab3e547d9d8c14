"""Convert the tiny autoencoder's files, as its author publishes them, to ``vae/`` for diffusers' AutoencoderTiny."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Final

from pydantic_core import to_json
from safetensors.torch import save_file
from torch import Tensor

from md_export.checkpoint.weights import read_tensors
from md_export.errors import CheckpointError, ConfigError, UsageError
from md_export.models.tiny_autoencoder import TINY_CLASS, TinyConfig
from md_export.system.workspace import scratch_folder

_COLOURS: Final = 3
# The author's decoder begins with a clamp without weights, so its first convolution has index 1.
_AFTER_CLAMP: Final = 1
# Maximum number of digits of an index.
_LONGEST: Final = 3
# Number of convolutions in a sequence with one level, and rank of their weights.
_FEWEST: Final = 2
_CONV: Final = 4
Layers = dict[int, dict[str, Tensor]]


def write_tiny_vae(files: Sequence[Path], folder: Path) -> None:
    """Write config and weights of a tiny autoencoder into the empty ``folder``.

    ``files``: ``.safetensors`` of a decoder and optionally of an encoder, with names that are indices in a sequence:
    ``1.weight``, ``3.conv.0.weight``, ``3.pool.0.weight``.

    Raises:
        CheckpointError: a file is neither, or the two do not match.
    """
    tensors: dict[str, Tensor] = {}
    fields: dict[str, object] = {}
    for file in files:
        layers = _layers(file)
        first = layers[min(layers)].get("weight")
        half = "encoder" if first is not None and first.shape[1:2] == (_COLOURS,) else "decoder"
        if f"num_{half}_blocks" in fields:
            raise CheckpointError(f"{file} is a second {half}: give one decoder and at most one encoder")
        fields |= _fields(layers, half, file)
        offset = _AFTER_CLAMP if half == "decoder" else 0
        for number, parts in layers.items():
            tensors |= {f"{half}.layers.{number - offset}.{part}": tensor for part, tensor in parts.items()}
    for name in ("block_out_channels", "blocks"):
        begin = "num_" if name == "blocks" else ""
        decoder = fields.get(f"{begin}decoder_{name}", ())
        fields.setdefault(f"{begin}encoder_{name}", decoder[::-1] if isinstance(decoder, tuple) else ())
    try:
        config = TinyConfig(**fields)  # type: ignore[arg-type]
    except (ConfigError, TypeError) as error:
        names = " and ".join(file.name for file in files)
        raise CheckpointError(f"{names} do not make a tiny autoencoder: {error}") from error
    (folder / "config.json").write_bytes(to_json({"_class_name": TINY_CLASS, **dataclasses.asdict(config)}, indent=2))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


@contextmanager
def vae_folder(given: Sequence[Path]) -> Iterator[Path | None]:
    """Yield the VAE folder in ``given``, or a temporary one made from the author's files; None if nothing is given.

    Raises:
        UsageError: more than one folder, or a folder and a file.
        CheckpointError: as :func:`write_tiny_vae`.
    """
    if len(given) > 1 and any(path.is_dir() for path in given):
        raise UsageError("--vae: name one folder, or the files of a decoder and an encoder")
    if not given or given[0].is_dir():
        yield given[0] if given else None
        return
    with scratch_folder() as scratch:
        write_tiny_vae(given, scratch)
        yield scratch


def _layers(file: Path) -> Layers:
    layers: Layers = {}
    for name, tensor in read_tensors(file).items():
        number, _, part = name.partition(".")
        if not number.isdecimal() or not part or len(number) > _LONGEST:
            raise CheckpointError(
                f"{file} is not a tiny autoencoder: {name!r:.80} is not a layer of a sequence; give a folder as "
                "diffusers saves it, or the author's taesd_decoder.safetensors"
            )
        layers.setdefault(int(number), {})[part] = tensor
    if not layers:
        raise CheckpointError(f"{file} holds no tensors; copy it again")
    return layers


def _fields(layers: Mapping[int, Mapping[str, Tensor]], half: str, file: Path) -> dict[str, object]:
    """Return config fields by the layers: those with ``conv.…`` are blocks, and other convolutions separate levels."""
    in_order = [parts for _, parts in sorted(layers.items())]
    ends = [parts["weight"] for parts in in_order if "weight" in parts]
    if len(ends) < _FEWEST or any(end.ndim != _CONV for end in ends):
        raise CheckpointError(f"{file} is not a tiny autoencoder: it has no convolutions between its blocks")
    runs = groupby(any(part.startswith("conv.") for part in parts) for parts in in_order)
    blocks = tuple(len(list(run)) for is_block, run in runs if is_block)
    widths = tuple(end.shape[1] for end in ends[1:]) if half == "decoder" else tuple(end.shape[0] for end in ends[:-1])
    return {
        f"{half}_block_out_channels": widths,
        f"num_{half}_blocks": blocks,
        "latent_channels": ends[0].shape[1] if half == "decoder" else ends[-1].shape[0],
        "use_midblock_gn": any(part.startswith("pool.") for parts in in_order for part in parts),
    }
