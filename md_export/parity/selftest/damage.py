"""Damage to artifacts (weights, scales, palettes, metadata, whole files) and to what lies beside them.

Beside them lie golden files, their index and the manifest. Each function takes a :class:`Sandbox`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, Final, Literal, ParamSpec

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from md_export.checkpoint.files import hash_of_folder
from md_export.models.families import family_named
from md_export.models.values import LAST, MADE
from md_export.models.walk import picture_from
from md_export.parity.golden.surface import inputs_of
from md_export.parity.selftest.sandbox import Change, NotApplicable, Sandbox, edit_json, halve, make_own
from md_export.spec.artifact import artifact_path
from md_export.spec.tensors import only_output, save_tensors
from md_export.targets.stored import Constant

# Further arguments of a damage.
Extra = ParamSpec("Extra")
# The last layer's weight and bias, or a last norm's.
_LAST: Final = 2
# Values of a last layer; the constants of a reshape behind it are fewer.
_LEAST: Final = 3
BLOCK_BYTES: Final = 64
# What the text encoder's causal mask holds where nothing may be seen.
_MASKED: Final = -10000.0


def on_constants(
    change: Callable[Concatenate[Sequence[Constant], Extra], None],
) -> Callable[Concatenate[Sandbox, Extra], None]:
    """Damage that writes over constants of the artifact."""

    def damage(sandbox: Sandbox, /, *args: Extra.args, **kwargs: Extra.kwargs) -> None:
        with sandbox.constants() as constants:
            change(constants, *args, **kwargs)

    return damage


@on_constants
def last_value(constants: Sequence[Constant], wrong: float) -> None:
    """Write ``wrong`` over the last layer's last constant that floats can be stored in."""
    floats = [item for item in constants if item.is_float and item.values.size >= _LEAST]
    floats[-1].values[...] = wrong


@on_constants
def inner_value(constants: Sequence[Constant], wrong: float) -> None:
    """Write ``wrong`` over one value of the largest constant that floats can be stored in."""
    _largest(constants, _is_float).values.reshape(-1)[0] = wrong


@on_constants
def last_layer_times(constants: Sequence[Constant], factor: Literal[0, -1]) -> None:
    """Multiply the last layer's weight and bias, or the last norm's."""
    for values in _weights(constants)[-_LAST:]:
        values[...] = np.multiply(values, factor).astype(values.dtype)


@on_constants
def flip_block(constants: Sequence[Constant]) -> None:
    """Invert 64 bytes in the middle of the largest weight; of floats the sign, since NaN would be found otherwise."""
    values = _largest(constants, _is_stored).values.reshape(-1)
    block = values[values.size // 2 :][: BLOCK_BYTES // values.itemsize]
    block[...] = -block if np.issubdtype(values.dtype, np.floating) else np.invert(block)


@on_constants
def reverse_weights(constants: Sequence[Constant]) -> None:
    """Every large weight back to front: as it would look if it were of another checkpoint."""
    least = _largest(constants, _is_stored).values.nbytes // 8
    for item in constants:
        if _is_stored(item) and item.values.nbytes > least:
            flat = item.values.reshape(-1)
            flat[...] = flat[::-1].copy()


@on_constants
def transpose_weight(constants: Sequence[Constant]) -> None:
    """Rows for columns in the last square weight matrix."""
    sides = [(values, round(values.size**0.5)) for values in _weights(constants)]
    square = [values.reshape(side, side) for values, side in sides if side * side == values.size and side >= 8]
    if not square:
        raise NotApplicable("it stores no square weight of a type that numpy has")
    square[-1][...] = square[-1].T.copy()


@on_constants
def double_scales(constants: Sequence[Constant]) -> None:
    """All scales of all weights, twice what they were."""
    for values in _scales(constants):
        values *= 2


@on_constants
def double_one_scale(constants: Sequence[Constant]) -> None:
    """One scale of the last quantized weight, twice what it was."""
    _scales(constants)[-1].reshape(-1)[-1:] *= 2


@on_constants
def move_palette_entry(constants: Sequence[Constant]) -> None:
    """The largest entry of the last palette, half of what it was."""
    palettes = [item.values for item in constants if item.role == "palette"]
    if not palettes:
        raise NotApplicable("its weights have no palette")
    flat = palettes[-1].reshape(-1)
    flat[np.abs(flat).argmax()] /= 2


def deepen_mask(constants: Sequence[Constant]) -> None:
    """The causal mask from -10000 to float16's end: finite, until scores are added; softmax hides it."""
    masks = [item.values for item in constants if item.values.dtype == np.float16 and _MASKED in item.values]
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
    """Neither shapes nor zero points, and of a type that numpy has."""
    kinds = (np.floating, np.int8, np.int32)
    held = [item.values for item in constants if item.role == "weight" and item.values.size >= _LEAST]
    return [values for values in held if any(np.issubdtype(values.dtype, kind) for kind in kinds) and values.any()]


def _scales(constants: Sequence[Constant]) -> list[NDArray[Any]]:
    found = [item.values for item in constants if item.role == "scale"]
    if not found:
        raise NotApplicable("its weights have no quantization scale")
    return found


def store_as_float(sandbox: Sandbox) -> None:
    """Quantized weights as floats of the same value."""
    if not sandbox.target.store_as_float(sandbox.artifact()):
        raise NotApplicable("its weights are float as it is")


def truncate(sandbox: Sandbox) -> None:
    """Cut the file that holds the weights in half."""
    halve(weight_file(sandbox.artifact()))


def weight_file(artifact: Path) -> Path:
    """The file that holds an artifact's weights."""
    files = [file for file in artifact.rglob("*") if file.is_file()] if artifact.is_dir() else [artifact]
    return max(files, key=lambda file: file.stat().st_size)


def name_another_checkpoint(sandbox: Sandbox) -> None:
    """The artifact's own notes name another checkpoint; its weights stay as they are."""
    artifact = sandbox.artifact()
    folder = family_named(sandbox.manifest.family)[sandbox.component].folder
    mine = hash_of_folder(sandbox.manifest.checkpoint_files, folder).encode()
    for file in [item for item in (*artifact.rglob("*"), artifact) if item.is_file()]:
        file.write_bytes(file.read_bytes().replace(mine, b"0" * len(mine)))


def other_constant(sandbox: Sandbox) -> None:
    """The scaling factor in the artifact's own notes is another of as many digits."""
    artifact, factor = sandbox.artifact(), repr(float(sandbox.manifest.one_step.scaling_factor))
    other = factor[:-1] + ("1" if factor[-1] != "1" else "2")
    for file in [item for item in (*artifact.rglob("*"), artifact) if item.is_file()]:
        content = file.read_bytes()
        place = content.find(b"scaling_factor")
        if place >= 0:
            file.write_bytes(content[:place] + content[place:].replace(factor.encode(), other.encode(), 1))


def exchange_artifacts(sandbox: Sandbox) -> None:
    """This component's artifact and another's under each other's name."""
    others = [entry for entry in sandbox.manifest.artifacts if entry.component != sandbox.component]
    if not others:
        raise NotApplicable("the export has one component only")
    mine, other = sandbox.folder / sandbox.entry.file, artifact_path(sandbox.folder, others[-1])
    aside = sandbox.folder / "aside"
    mine.rename(aside)
    other.rename(mine)
    aside.rename(other)


def stale_golden(sandbox: Sandbox) -> None:
    """The first golden file holds what another checkpoint might have given for its prompt."""
    path = sandbox.golden_file()
    arrays = load_file(path)
    # What components gave; the others are what they take.
    made = (*(f"{row}." for row in family_named(sandbox.manifest.family).rows), LAST.key, MADE.key)
    save_tensors({name: value[..., ::-1] if name.startswith(made) else value for name, value in arrays.items()}, path)


def nan_in_golden(sandbox: Sandbox) -> None:
    """One NaN in the first golden file."""
    path = sandbox.golden_file()
    arrays = load_file(path)
    arrays[LAST.key].reshape(-1)[0] = np.nan
    save_tensors(arrays, path)


def recorded_from_broken(sandbox: Sandbox) -> None:
    """One block of a weight flipped, and the golden outputs taken from that artifact: all that runs, agrees."""
    image_of = family_named(sandbox.manifest.family).image
    if sandbox.component != image_of.node:
        raise NotApplicable("the export has no decoder, whose output no other component takes")
    flip_block(sandbox)
    recipe, runner = sandbox.manifest.recipe, sandbox.target.load(sandbox.artifact())
    for case, item in zip(sandbox.golden.cases, sandbox.golden.index.cases, strict=True):
        image = only_output(runner.run(inputs_of(recipe, sandbox.entry, case)))
        path = sandbox.folder / sandbox.golden.folder.name / item.file
        make_own(path)
        save_tensors({**load_file(path), image_of.key: image, MADE.key: picture_from(image)}, path)


def exchange_words(sandbox: Sandbox) -> None:
    """Two words of a golden prompt get each other's id in the tokenizer."""
    value = next(iter(family_named(sandbox.manifest.family).tokens.values()))
    held = sandbox.golden.cases[0].values
    ids = next(held[key] for key in (value.key, f"{value.key}.1") if key in held)[0].tolist()
    for name in ("vocab.json", "tokenizer.json"):
        if (path := sandbox.folder / "tokenizer" / name).is_file():
            edit_json(path, lambda content: _exchange(content.get("model", {}).get("vocab", content), ids))


def _exchange(vocabulary: dict[str, int], ids: Sequence[int]) -> None:
    by_id = {number: word for word, number in vocabulary.items()}
    first, second = [by_id[number] for number in dict.fromkeys(ids) if by_id.get(number, "<").endswith("</w>")][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def index(change: Change) -> Callable[[Sandbox], None]:
    """Edit the golden index."""
    return lambda sandbox: sandbox.edit_index(change)


def manifest(change: Change) -> Callable[[Sandbox], None]:
    """Edit the manifest."""
    return lambda sandbox: sandbox.edit_manifest(change)


def entry(change: Change) -> Callable[[Sandbox], None]:
    """Edit the component's entry in the manifest."""
    return lambda sandbox: sandbox.edit_entry(change)


def index_and_manifest(change: Change) -> Callable[[Sandbox], None]:
    """Edit the golden index and the manifest, which then agree on what is not the artifacts'."""

    def damage(sandbox: Sandbox) -> None:
        sandbox.edit_index(change)
        sandbox.edit_manifest(change)

    return damage


def other_hash(field: str) -> Change:
    """Replace a hash of an index, a manifest or an entry."""
    return lambda values: values.update({field: "0" * 64})


def negate_step(values: dict[str, Any]) -> None:
    """x0 = a·noise − b·output, in an index or a manifest; of many steps, each."""
    for step in (values["one_step"], *(values.get("steps") or {"steps": ()})["steps"]):
        step["b"] *= -1


def drop_threshold(values: dict[str, Any]) -> None:
    """A threshold that everything meets, in a manifest."""
    values["recipe"]["picture_psnr_db"] = -math.inf


def exchange_shapes(values: dict[str, Any]) -> None:
    """The first and the last input under each other's name."""
    specs = values["inputs"]
    if len(specs) < 2:
        specs[0]["shape"] = specs[0]["shape"][::-1]
    else:
        specs[0]["name"], specs[-1]["name"] = specs[-1]["name"], specs[0]["name"]


def shrink_output(values: dict[str, Any]) -> None:
    """An output of one row, to which the true one could be broadcast."""
    values["outputs"][0]["shape"][-1] = 1


def other_weights(values: dict[str, Any]) -> None:
    """A type that the artifact's weights were not stored in."""
    values["weights"] = "int8" if values["weights"] == "int4" else "int4"


def claim_int8(sandbox: Sandbox) -> None:
    """Float weights as int8 ones, in the manifest and in its recipe."""
    component, weights = sandbox.component, sandbox.entry.weights
    if not weights.startswith("float"):
        raise NotApplicable(f"its weights are {weights}, no float ones")
    sandbox.edit_entry(lambda values: values.update(weights="int8"))
    sandbox.edit_manifest(lambda values: values["recipe"]["schemes"][component].update(weights="int8"))
