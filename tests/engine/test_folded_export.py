"""A recipe that fixes the one step: no ``timestep`` goes in, the decoder's latent comes out, the picture stays."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from md_export.engine.export import export
from md_export.parity.judge import verify
from md_export.spec.manifest import read_manifest, write_manifest
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from support import Exported


@pytest.mark.slow
def test_one_step_folded_into_the_unet(copy_of: Exported, nano: Path, tmp_path: Path) -> None:
    recipe = load_recipe(builtin_recipe("coreml", "fp16"))
    recipe = replace(recipe, rewrites=(*recipe.rewrites, "fold_timestep", "fold_x0"))
    alone, result = export(recipe.narrowed(("unet",)), nano, tmp_path / "unet")
    assert result.passed
    (unet,) = alone.artifacts
    assert [spec.name for spec in unet.inputs] == ["sample", "encoder_hidden_states"]
    assert [spec.name for spec in unet.outputs] == ["latent"]
    assert not {"sin", "cos"} & set(unet.ops)
    assert verify(between_the_others(copy_of("coreml", "fp16"), alone_in=tmp_path / "unet")).failures == ()


def between_the_others(out: Path, alone_in: Path) -> Path:
    """The folded UNet in place of the plain one of a whole export, ``out``, so that the chain runs through it."""
    shutil.rmtree(out / "unet.mlpackage")
    shutil.copytree(alone_in / "unet.mlpackage", out / "unet.mlpackage")
    alone, whole = read_manifest(alone_in), read_manifest(out)
    text, _, decoder = whole.artifacts
    recipe = replace(whole.recipe, rewrites=alone.recipe.rewrites)
    write_manifest(replace(whole, recipe=recipe, artifacts=(text, *alone.artifacts, decoder)), out)
    return out
