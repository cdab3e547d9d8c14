"""Damage to what lies beside the artifacts: golden files, their index, the manifest. Each takes a :class:`Sandbox`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

from md_export.models.families import WIRING
from md_export.models.given import LAST, MADE
from md_export.models.walk import picture_from
from md_export.parity.golden.folder import INDEX
from md_export.parity.golden.surface import inputs_of
from md_export.parity.selftest.sandbox import Change, NotApplicable, Sandbox, halve, make_own
from md_export.parity.selftest.stored import flip_block, on_constants
from md_export.spec.manifest import MANIFEST
from md_export.spec.tensors import only_output, save_tensors

OTHER_HASH: Final = "0" * 64


def stale_golden(sandbox: Sandbox) -> None:
    """The first golden file holds what another checkpoint might have given for its prompt."""
    path = sandbox.golden_file()
    arrays = load_file(path)
    save_tensors({name: value[..., ::-1] if _is_made(name) else value for name, value in arrays.items()}, path)


def _is_made(name: str) -> bool:
    """Whether a component gave a value of a golden file; the others are what they take."""
    return name.startswith((*(f"{row}." for row in WIRING.rows), LAST.key, MADE.key))


def nan_in_golden(sandbox: Sandbox) -> None:
    """One NaN in the first golden file."""
    path = sandbox.golden_file()
    arrays = load_file(path)
    arrays[LAST.key].reshape(-1)[0] = np.nan
    save_tensors(arrays, path)


def truncated_golden(sandbox: Sandbox) -> None:
    """Half of the first golden file."""
    halve(sandbox.golden_file())


def recorded_from_broken(sandbox: Sandbox) -> None:
    """One block of a weight flipped, and the golden outputs taken from that artifact: all that runs, agrees."""
    if sandbox.component != WIRING.image.node:
        raise NotApplicable("the export has no decoder, whose output no other component takes")
    on_constants(flip_block)(sandbox)
    recipe, runner = sandbox.manifest.recipe, sandbox.target.load(sandbox.artifact())
    for case, item in zip(sandbox.golden.cases, sandbox.golden.index.cases, strict=True):
        image = only_output(runner.run(inputs_of(recipe, sandbox.entry, case)))
        path = sandbox.folder / sandbox.golden.folder.name / item.file
        make_own(path)
        save_tensors({**load_file(path), WIRING.image.key: image, MADE.key: picture_from(image)}, path)


def index(change: Change) -> Callable[[Sandbox], None]:
    """Edit the golden index."""
    return lambda sandbox: sandbox.edit_index(change)


def manifest(change: Change) -> Callable[[Sandbox], None]:
    """Edit the manifest."""
    return lambda sandbox: sandbox.edit_manifest(change)


def entry(change: Change) -> Callable[[Sandbox], None]:
    """Edit the component's entry in the manifest."""
    return lambda sandbox: sandbox.edit_entry(change)


def both_name_another_checkpoint(sandbox: Sandbox) -> None:
    """Manifest and golden index agree on a checkpoint that the artifacts are not of."""
    sandbox.edit_index(lambda values: values.update(checkpoint_sha256=OTHER_HASH))
    sandbox.edit_manifest(lambda values: values.update(checkpoint_sha256=OTHER_HASH))


def both_have_other_constants(sandbox: Sandbox) -> None:
    """Manifest and golden index agree on constants of the step that are not the checkpoint's."""
    sandbox.edit_index(negate_step)
    sandbox.edit_manifest(negate_step)


def negate_step(values: dict[str, Any]) -> None:
    """x0 = a·noise − b·output, in an index or a manifest; of many steps, each."""
    for step in (values["one_step"], *(values.get("ddim") or values.get("euler") or {"steps": ()})["steps"]):
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


def truncated_manifest(sandbox: Sandbox) -> None:
    """Half of the manifest."""
    halve(sandbox.folder / MANIFEST)


def truncated_index(sandbox: Sandbox) -> None:
    """Half of the golden index."""
    halve(sandbox.folder / sandbox.golden.folder.name / INDEX)
