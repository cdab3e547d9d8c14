"""What Apple's Swift package ml-stable-diffusion asks of a resources folder, as a table, and the check against it.

Read from its sources, swift/StableDiffusion, July 2025; docs/apple.md says which file asks what.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from md_export.errors import ArtifactError
from md_export.targets.coreml.package import read_spec
from md_export.targets.coreml.surface import feature_specs
from md_export.tensors import TensorSpec

# A number, or a letter that stands for the same number wherever it occurs, so that the packages fit each other.
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Demand:
    """One package's inputs and outputs, float32 each, in this order and no more of them."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]


LATENT: Final[Shape] = (1, "C", "h", "w")
PACKAGES: Final[Mapping[str, Demand]] = {
    "TextEncoder.mlpackage": Demand({"input_ids": (1, "L")}, {"last_hidden_state": (1, "L", "D")}),
    "Unet.mlpackage": Demand(
        {"sample": LATENT, "timestep": (1,), "encoder_hidden_states": (1, "D", 1, "L")}, {"noise_pred": LATENT}
    ),
    "VAEDecoder.mlpackage": Demand({"z": LATENT}, {"image": (1, 3, "H", "W")}),
}
# Swift's tokenizer pads with the end token and takes it for unknown words, whatever the checkpoint says.
START, END = "<|startoftext|>", "<|endoftext|>"
FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "timestep": (int,),
    "a": (int, float),
    "b": (int, float),
    "prediction_type": (str,),
    "scaling_factor": (int, float),
    "latent_shape": (list,),
    "image_size": (int,),
    "text_length": (int,),
    "stock_scheduler": (str, type(None)),
}


def faults(folder: Path, packages: tuple[str, ...] = tuple(PACKAGES)) -> tuple[str, ...]:
    """Each demand that the export in ``folder`` does not meet, the file's name first; ``packages`` are looked at."""
    sizes: dict[str, int] = {}
    lines = [line for name in packages for line in _package_faults(folder / name, PACKAGES[name], sizes)]
    for name, check in _FILES.items():
        lines += [f"{name}: {fault}" for fault in _file_faults(folder / name, check)]
    return tuple(lines)


def _package_faults(path: Path, demand: Demand, sizes: dict[str, int]) -> list[str]:
    try:
        description = read_spec(path).description
        found = {"inputs": feature_specs(description.input), "outputs": feature_specs(description.output)}
    except ArtifactError as error:
        return [f"{path.name}: {error}"]
    lines = []
    for kind, wanted in (("inputs", demand.inputs), ("outputs", demand.outputs)):
        names = [spec.name for spec in found[kind]]
        if names != list(wanted):
            lines.append(f"{path.name}: {kind} are {', '.join(names)}; Swift reads {', '.join(wanted)}")
            continue
        lines += [f"{path.name}: {fault}" for spec in found[kind] for fault in _misfits(spec, wanted[spec.name], sizes)]
    return lines


def _misfits(spec: TensorSpec, shape: Shape, sizes: dict[str, int]) -> list[str]:
    """Differences of one array; letters not met before are bound in ``sizes``."""
    if spec.dtype != "float32":
        return [f"{spec.name} is {spec.dtype}; Swift passes float32"]
    if len(spec.shape) != len(shape):
        return [f"{spec.name} is {list(spec.shape)}; Swift's has {len(shape)} dimensions"]
    for size, wanted in zip(spec.shape, shape, strict=True):
        number = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
        if size != number:
            return [f"{spec.name} is {list(spec.shape)}; {size} must be {number} to fit the others"]
    return []


def _file_faults(path: Path, check: Callable[[str], list[str]]) -> list[str]:
    try:
        return check(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        return [f"cannot be read: {error}"]


def _vocabulary_faults(text: str) -> list[str]:
    vocabulary = _object(text)
    lines = [f"has no {token}, which Swift's tokenizer adds" for token in (START, END) if token not in vocabulary]
    return lines + ["maps a token to what is no integer"] * any(type(value) is not int for value in vocabulary.values())


def _merges_faults(text: str) -> list[str]:
    """Swift reads line by line at \\n, drops what follows the last one, and throws unless a line is two words."""
    lines = text.split("\n")
    broken = [line for line in lines if line and not line.startswith("#") and len(line.split(" ")) != 2]
    faults = [f"a line is no pair of tokens: {broken[0]!r}"] if broken else []
    faults += ["does not end with a line feed, so its last line is lost"] if lines[-1] else []
    return faults + ["has carriage returns, which become part of tokens"] * ("\r" in text)


def _schedule_faults(text: str) -> list[str]:
    values = _object(text)
    lines = [f"field {name} is missing" for name in FIELDS if name not in values]
    return lines + [
        f"field {name} is {values[name]!r}"
        for name, kinds in FIELDS.items()
        if name in values and type(values[name]) not in kinds
    ]


def _object(text: str) -> dict[str, Any]:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    return values


_FILES: Final[Mapping[str, Callable[[str], list[str]]]] = {
    "vocab.json": _vocabulary_faults,
    "merges.txt": _merges_faults,
    "schedule.json": _schedule_faults,
}
