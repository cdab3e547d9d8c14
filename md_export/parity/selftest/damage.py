"""Damage to artifacts (weights, scales, palettes, metadata, whole files).

Each function takes a :class:`Sandbox`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, Final, Literal, ParamSpec

import numpy as np
from numpy.typing import NDArray

from md_export.checkpoint.files import hash_of_folder
from md_export.models.families import family_named
from md_export.parity.selftest.sandbox import Json, NotApplicable, Sandbox, halve
from md_export.spec.artifact import artifact_path
from md_export.targets.stored import Constant

# Further arguments of a damage function.
Extra = ParamSpec("Extra")
# The last layer's weight and bias, or a last norm's.
_LAST: Final = 2
# Least number of values of a last layer; the constants of a reshape after it have fewer.
_LEAST: Final = 3
BLOCK_BYTES: Final = 64
# Value of the text encoder's causal mask at masked positions.
_MASKED: Final = -10000.0


def on_constants(
    change: Callable[Concatenate[Sequence[Constant], Extra], None],
) -> Callable[Concatenate[Sandbox, Extra], None]:
    """Return a damage that overwrites constants of the artifact."""

    def damage(sandbox: Sandbox, /, *args: Extra.args, **kwargs: Extra.kwargs) -> None:
        with sandbox.constants() as constants:
            change(constants, *args, **kwargs)

    return damage


@on_constants
def last_value(constants: Sequence[Constant], wrong: float) -> None:
    """Overwrite the last float constant of the last layer with ``wrong``."""
    floats = [item for item in constants if item.is_float and item.values.size >= _LEAST]
    floats[-1].values[...] = wrong


@on_constants
def inner_value(constants: Sequence[Constant], wrong: float) -> None:
    """Overwrite one value of the largest float constant with ``wrong``."""
    _largest(constants, _is_float).values.reshape(-1)[0] = wrong


@on_constants
def last_layer_times(constants: Sequence[Constant], factor: Literal[0, -1]) -> None:
    """Multiply the weight and bias of the last layer or last norm by ``factor``."""
    weights = _weights(constants)[-_LAST:]
    # T5's last layer has no bias: if the matrix before it were negated, too, the output would not change.
    for values in weights[:1] if factor == -1 and weights[0].ndim > 1 else weights:
        values[...] = np.multiply(values, factor).astype(values.dtype)


@on_constants
def flip_block(constants: Sequence[Constant]) -> None:
    """Invert 64 bytes in the middle of the largest weight; in floats only the signs, because NaN is another check's."""
    values = _largest(constants, _is_stored).values.reshape(-1)
    block = values[values.size // 2 :][: BLOCK_BYTES // values.itemsize]
    block[...] = -block if np.issubdtype(values.dtype, np.floating) else np.invert(block)


@on_constants
def reverse_weights(constants: Sequence[Constant]) -> None:
    """Reverse every large weight, so that it looks like another checkpoint's."""
    least = _largest(constants, _is_stored).values.nbytes // 8
    for item in constants:
        if _is_stored(item) and item.values.nbytes > least:
            flat = item.values.reshape(-1)
            flat[...] = flat[::-1].copy()


@on_constants
def transpose_weight(constants: Sequence[Constant]) -> None:
    """Transpose the last square weight matrix."""
    sides = [(values, round(values.size**0.5)) for values in _weights(constants)]
    square = [values.reshape(side, side) for values, side in sides if side * side == values.size and side >= 8]
    if not square:
        raise NotApplicable("it stores no square weight in a type of numpy")
    square[-1][...] = square[-1].T.copy()


@on_constants
def double_scales(constants: Sequence[Constant]) -> None:
    """Double all scales of all weights."""
    for values in _scales(constants):
        values *= 2


@on_constants
def double_one_scale(constants: Sequence[Constant]) -> None:
    """Double one scale of the last quantized weight."""
    _scales(constants)[-1].reshape(-1)[-1:] *= 2


@on_constants
def move_palette_entry(constants: Sequence[Constant]) -> None:
    """Halve the largest entry of the last palette."""
    palettes = [item.values for item in constants if item.role == "palette"]
    if not palettes:
        raise NotApplicable("its weights have no palette")
    flat = palettes[-1].reshape(-1)
    flat[np.abs(flat).argmax()] /= 2


def deepen_mask(constants: Sequence[Constant]) -> None:
    """Lower the causal mask from -10000 to float16's limit: adding scores then overflows, and softmax hides it."""
    halves = [item.values for item in constants if item.values.dtype == np.float16 and item.values.size > 1]
    masks = [values for values in halves if _MASKED in values]
    if not masks:
        raise NotApplicable("it holds no causal mask in float16")
    for values in masks:
        values[values == _MASKED] = np.finfo(np.float16).min


def _is_float(constant: Constant) -> bool:
    return constant.is_float


def _is_stored(constant: Constant) -> bool:
    return constant.role in ("weight", "packed")


def _largest(constants: Sequence[Constant], wanted: Callable[[Constant], bool]) -> Constant:
    return max(filter(wanted, constants), key=lambda item: item.values.nbytes)


def _weights(constants: Sequence[Constant]) -> list[NDArray[Any]]:
    """Return the weights without shapes and zero points, in types of numpy."""
    kinds = (np.floating, np.int8, np.int32)
    held = [item.values for item in constants if item.role == "weight" and item.values.size >= _LEAST]
    return [values for values in held if any(np.issubdtype(values.dtype, kind) for kind in kinds) and values.any()]


def _scales(constants: Sequence[Constant]) -> list[NDArray[Any]]:
    found = [item.values for item in constants if item.role == "scale"]
    if not found:
        raise NotApplicable("its weights have no quantization scale")
    return found


def store_as_float(sandbox: Sandbox) -> None:
    """Store quantized weights as floats of the same value."""
    if not sandbox.target.store_as_float(sandbox.artifact()):
        raise NotApplicable("its weights are already float")


def truncate(sandbox: Sandbox) -> None:
    """Cut the file that holds the weights in half."""
    halve(weight_file(sandbox.artifact()))


def weight_file(artifact: Path) -> Path:
    """Return the file that holds an artifact's weights."""
    files = [file for file in artifact.rglob("*") if file.is_file()] if artifact.is_dir() else [artifact]
    return max(files, key=lambda file: file.stat().st_size)


def name_another_checkpoint(sandbox: Sandbox) -> None:
    """Name another checkpoint in the artifact's metadata; its weights do not change."""
    artifact = sandbox.artifact()
    folder = family_named(sandbox.manifest.family)[sandbox.component].folder
    mine = hash_of_folder(sandbox.manifest.checkpoint_files, folder).encode()
    for file in [item for item in (*artifact.rglob("*"), artifact) if item.is_file()]:
        file.write_bytes(file.read_bytes().replace(mine, b"0" * len(mine)))


def other_constant(sandbox: Sandbox) -> None:
    """Change the scaling factor in the artifact's metadata to another one with as many digits."""
    artifact, factor = sandbox.artifact(), repr(float(sandbox.manifest.one_step.scaling_factor))
    other = factor[:-1] + ("1" if factor[-1] != "1" else "2")
    for file in [item for item in (*artifact.rglob("*"), artifact) if item.is_file()]:
        content = file.read_bytes()
        place = content.find(b"scaling_factor")
        if place >= 0:
            file.write_bytes(content[:place] + content[place:].replace(factor.encode(), other.encode(), 1))


def other_note(sandbox: Sandbox, name: str) -> None:
    """Change the last digit of the metadata entry ``name`` in every artifact."""
    value = sandbox.target.describe(sandbox.artifact()).notes.get(name)
    if value is None:
        raise NotApplicable(f"its metadata has no {name}")
    other = value[:-1] + ("1" if value[-1] != "1" else "2")
    pattern = re.compile(rb"(" + name.encode() + rb"\W{1,9})" + re.escape(value.encode()))
    for entry in sandbox.manifest.artifacts:
        artifact = dataclasses.replace(sandbox, component=entry.component).artifact()
        counts = []
        for file in [item for item in (*artifact.rglob("*"), artifact) if item.is_file()]:
            content, count = pattern.subn(rb"\g<1>" + other.encode(), file.read_bytes())
            file.write_bytes(content)
            counts.append(count)
        if not any(counts):
            raise NotApplicable(f"its format keeps the value of {name} apart from its name")


def exchange_names(sandbox: Sandbox) -> None:
    """Exchange the names of two components' files, also in the manifest; an app loads by name."""
    exchange_artifacts(sandbox)
    mine, other = sandbox.entry, sandbox.manifest.artifacts[-1]

    def change(manifest: Json) -> None:
        for entry in manifest["artifacts"]:
            if entry["component"] in (mine.component, other.component):
                entry["file"] = other.file if entry["component"] == mine.component else mine.file

    sandbox.edit_manifest(change)


def exchange_artifacts(sandbox: Sandbox) -> None:
    """Exchange the files of two components."""
    others = [entry for entry in sandbox.manifest.artifacts if entry.component != sandbox.component]
    if not others:
        raise NotApplicable("the export has one component only")
    mine, other = sandbox.folder / sandbox.entry.file, artifact_path(sandbox.folder, others[-1])
    aside = sandbox.folder / "aside"
    mine.rename(aside)
    other.rename(mine)
    aside.rename(other)
