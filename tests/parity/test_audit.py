"""The audit of stored weights: untouched exports pass, and what parity may not see is found and named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifact_edits import Change, change, entry_of, largest, one_value
from cli.test_cli import fails, md_export
from md_export.checkpoint import open_checkpoint
from md_export.errors import ArtifactError, RuntimeFault
from md_export.parity.weights.audit import ComponentAudit, audit, audit_component
from md_export.parity.weights.reference import Reference, prepare_reference
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.shipped_files import nano_checkpoint
from md_export.targets import TARGETS
from mutations import deepen_mask, edit_json, flip_block, rehash, weight_file
from support import ONE_EACH, Exported

DECODER = "vae_decoder"


@pytest.fixture(scope="module")
def references() -> Callable[[Recipe, str], Reference]:
    """What the nano checkpoint asks of a component, worked out once for each list of rewrites."""
    checkpoint = open_checkpoint(nano_checkpoint())
    made: dict[tuple[tuple[str, ...], str], Reference] = {}

    def get(recipe: Recipe, component: str) -> Reference:
        key = recipe.rewrites, component
        if key not in made:
            made[key] = prepare_reference(checkpoint, recipe, component, nano_checkpoint() / "golden")
        return made[key]

    return get


Audited = Callable[[Path, str], ComponentAudit]


@pytest.fixture(scope="module")
def audited(references: Callable[[Recipe, str], Reference]) -> Audited:
    """``audited(out, component)``, in this process."""

    def get(out: Path, component: str) -> ComponentAudit:
        manifest, entry = entry_of(out, component)
        return audit_component(out, manifest, entry, references(manifest.recipe, component))

    return get


def swap_two(constants: list[Any]) -> None:
    """Two different weights of one size and type, each in the other's place."""
    first = largest(constants)
    same = [item for item in constants if item.values.dtype == first.values.dtype and item is not first]
    second = next(
        item
        for item in same
        if item.values.size == first.values.size and not np.array_equal(item.values.ravel(), first.values.ravel())
    )
    kept = first.values.copy()
    first.values[...] = second.values.reshape(first.values.shape)
    second.values[...] = kept.reshape(second.values.shape)


def reversed_rows(constants: list[Any]) -> None:
    """Output channels back to front."""
    values = largest(constants).values.reshape(-1)
    values[...] = values[::-1].copy()


def double_scales(constants: list[Any]) -> None:
    largest(constants, "scale").values[...] *= 2


def halve_scales(constants: list[Any]) -> None:
    largest(constants, "scale").values[...] /= 2


@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_an_untouched_export_is_proven(exported: Exported, audited: Audited, target: str, precision: str) -> None:
    out = exported(target, precision)
    for entry in read_manifest(out).artifacts:
        found = audited(out, entry.component)
        assert found.faults == ()
        assert found.missing == ()
        assert found.as_requested == found.promised > 0.5 * found.total
        assert found.proven_share > 0.99
        # Sizes, axes, scales of activations: nothing that a weight could hide in.
        assert max(constant.bytes for constant in found.unmatched) <= 64


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_what_a_rewrite_folds_away_is_listed(exported: Exported, audited: Audited, target: str, precision: str) -> None:
    folded = audited(exported(target, precision), "text_encoder").folded
    wanted = {f"encoder.layers.{layer}.layer_norm{norm}.weight" for layer in range(3) for norm in (1, 2)}
    assert (wanted <= set(folded)) == ("fold_norm_affine" in read_manifest(exported(target, precision)).recipe.rewrites)


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
@pytest.mark.parametrize("damage", [one_value, swap_two, reversed_rows])
def test_a_wrong_weight_is_named(
    copy_of: Exported, audited: Audited, target: str, precision: str, damage: Change
) -> None:
    out = copy_of(target, precision)
    change(out, DECODER, damage)
    faults = audited(out, DECODER).faults
    assert len(faults) == (2 if damage is swap_two else 1)
    stored = "float16" if precision == "fp16" else "int8"
    pattern = rf"decoder\.\S+(weight|phases\[\d\]), stored as {stored}: \d+ of \d+ values are off, by up to \S+$"
    assert all(re.fullmatch(pattern, fault) for fault in faults)


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_one_flipped_block_under_a_fresh_manifest(
    copy_of: Exported, audited: Audited, target: str, precision: str
) -> None:
    """64 bytes, wherever the middle of the file is: parity does not notice so little."""
    out = copy_of(target, precision)
    flip_block(weight_file(out, "unet"), size=64)
    rehash(out)
    assert re.search(r"values are off|holds NaN", "; ".join(audited(out, "unet").faults))


@pytest.mark.parametrize("target", ["tflite", "onnx"])
@pytest.mark.parametrize(("damage", "message"), [(double_scales, "too coarse, by up to 2×"), (halve_scales, "are off")])
def test_a_scale_that_is_off_by_two(
    copy_of: Exported, audited: Audited, target: str, damage: Change, message: str
) -> None:
    out = copy_of(target, "int8")
    change(out, DECODER, damage)
    (fault,) = audited(out, DECODER).faults
    assert "stored as int8" in fault
    assert message in fault


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_int8_that_is_float_inside(copy_of: Exported, audited: Audited, target: str) -> None:
    """Decoded, so that it computes the same: only what is stored tells."""
    out = copy_of(target, "int8")
    _, entry = entry_of(out, DECODER)
    assert TARGETS[target].store_as_float(out / entry.file)
    rehash(out)
    found = audited(out, DECODER)
    assert found.as_requested == 0 < found.promised
    expected = r"decoder\.\S+ is stored as float32, int8 was requested|and \d+ more"
    assert all(re.fullmatch(expected, fault) for fault in found.faults)


def test_a_table_that_is_no_parameter(copy_of: Exported, audited: Audited) -> None:
    """The causal mask, deeper than it should be, which float16 arithmetic may or may not survive."""
    out = copy_of("coreml", "fp16")
    deepen_mask(weight_file(out, "text_encoder"))
    rehash(out)
    assert audited(out, "text_encoder").faults == ("b_mask_to_fp16 is not mask, which is nowhere in the artifact",)


def test_a_bias_that_is_gone(copy_of: Exported, audited: Audited) -> None:
    def forget(constants: list[Any]) -> None:
        next(item for item in constants if item.name == "decoder.conv_out.bias").values[...] = 0

    out = copy_of("onnx", "int8")
    change(out, DECODER, forget)
    found = audited(out, DECODER)
    assert found.faults == ("decoder.conv_out.bias is nowhere in the artifact",)
    assert found.missing == ("decoder.conv_out.bias",)


def test_a_weight_that_is_not_stored_as_requested(copy_of: Exported, audited: Audited) -> None:
    """The recipe says int8, keep_float let one layer be; without it that layer falls short."""
    out = copy_of("onnx", "int8")

    def promise(manifest: dict[str, Any]) -> None:
        manifest["recipe"]["schemes"][DECODER]["keep_float"] = []

    edit_json(out / "manifest.json", promise)
    found = audited(out, DECODER)
    assert found.faults == ("decoder.conv_out.weight is stored as float32, int8 was requested",)
    assert found.as_requested < found.promised


@pytest.mark.slow
def test_damage_under_compression(copy_of: Exported, audited: Audited) -> None:
    """A palette and a scale, in packages that other tests export anyway."""

    def move(constants: list[Any]) -> None:
        entries = largest(constants, "palette").values.reshape(-1)
        entries[30] += (entries[31] - entries[30]) / 2

    for precision, damage, message in (
        ("palette6", move, "palette entries are not the mean"),
        ("w8a8", double_scales, "scales are too coarse"),
    ):
        out = copy_of("coreml", precision)
        assert audited(out, "unet").faults == ()
        change(out, "unet", damage)
        (fault,) = audited(out, "unet").faults
        assert message in fault or "values are off" in fault


def test_another_checkpoint_is_refused(exported: Exported, other_checkpoint: Path) -> None:
    with pytest.raises(ArtifactError, match=r"were made from the checkpoint .* name the one that they were exported"):
        audit(exported("onnx", "int8"), other_checkpoint)


@pytest.mark.slow
def test_the_command(copy_of: Exported, tmp_path: Path) -> None:
    out, file = copy_of("onnx", "int8"), tmp_path / "audit.json"
    good = md_export("audit", out, "--json", file)
    assert good.returncode == 0, good.stderr
    assert "every weight, golden case and file is the checkpoint's" in good.stdout
    components = json.loads(file.read_text())["components"]
    assert [item["component"] for item in components] == ["text_encoder", "unet", "vae_decoder"]
    assert all(item["proven"] > 0.99 * sum(item["stored"].values()) for item in components)
    change(out, DECODER, swap_two)
    fails(md_export("audit", out), 3, "vae_decoder: decoder.", "values are off")


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_a_truncated_file_is_one_error(copy_of: Exported, audited: Audited, target: str, precision: str) -> None:
    out = copy_of(target, precision)
    path = weight_file(out, DECODER)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises((ArtifactError, RuntimeFault)):
        audited(out, DECODER)
