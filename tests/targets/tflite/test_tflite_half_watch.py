"""``verify`` of files with float16 weights: activations that float16 cannot hold, and weights that it can."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from md_export.engine.export import export
from md_export.errors import ParityError
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import WatchedRunner
from md_export.targets import TARGETS
from support import Exported

LARGEST = float(np.finfo(np.float16).max)


def planted(checkpoint: Path, out: Path, factor: float) -> Path:
    """The decoder's first convolution times ``factor``; the norm behind it takes the factor out again."""
    shutil.copytree(checkpoint, out)
    (path,) = (out / "vae").glob("*.safetensors")
    weights = load_file(path)
    for name in [name for name in weights if name.startswith("decoder.conv_in.")]:
        weights[name] = (weights[name].astype(np.float32) * factor).astype(np.float32)
        assert np.abs(weights[name]).max() < LARGEST
    save_file(weights, path)
    return out


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("factor", [1.0, 3e4])
def test_activations_that_only_float32_holds_are_rejected(
    other_checkpoint: Path, tmp_path: Path, factor: float
) -> None:
    checkpoint, out = planted(other_checkpoint, tmp_path / "checkpoint", factor), tmp_path / "out"
    recipe = load_recipe(builtin_recipe("tflite", "fp16")).narrowed(("vae_decoder",)).eased()
    if factor == 1:
        export(recipe, checkpoint, out)
        assert isinstance(TARGETS["tflite"].open().load(out / "vae_decoder.tflite"), WatchedRunner)
        return
    with pytest.raises(
        ParityError, match=r"vae_decoder: float16 overflow in module decoder\.conv_in, CONV_2D .* 65504"
    ):
        export(recipe, checkpoint, out)


def test_a_file_of_integer_weights_is_not_watched(exported: Exported) -> None:
    runner = TARGETS["tflite"].open().load(exported("tflite", "int8") / "text_encoder.tflite")
    assert not isinstance(runner, WatchedRunner)
