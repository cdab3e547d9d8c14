"""``--layout swift``: what Apple's Swift package ml-stable-diffusion demands of the packages, and that breaking any
demand is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

from md_export.cli import cli
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.engine.swift_bundle import Bundle, Schedule, check_bundle, faults
from md_export.errors import ConversionError, RecipeError
from md_export.models.families import COMPONENTS
from md_export.parity.metrics import compare
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import QuantScheme
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.targets.contract import LoweringJob
from md_export.targets.layouts import LAYOUTS, layout_of
from mutations import edit_json
from small_models import NANO, random_inputs

SWIFT = LAYOUTS["swift"]
# File, inputs or outputs, place, name, shape; every one float32. Sizes are the nano checkpoint's.
DEMANDS = [
    ("TextEncoder", "input", 0, "input_ids", [1, 77]),
    ("TextEncoder", "output", 0, "last_hidden_state", [1, 77, 128]),
    ("Unet", "input", 0, "sample", [1, 8, 8, 8]),
    ("Unet", "input", 1, "timestep", [1]),
    ("Unet", "input", 2, "encoder_hidden_states", [1, 128, 1, 77]),
    ("Unet", "output", 0, "noise_pred", [1, 8, 8, 8]),
    ("VAEDecoder", "input", 0, "z", [1, 8, 8, 8]),
    ("VAEDecoder", "output", 0, "image", [1, 3, 64, 64]),
]
COUNTS = {"TextEncoder": (1, 1), "Unet": (3, 1), "VAEDecoder": (1, 1)}
MODEL = "Data/com.apple.CoreML/model.mlmodel"
PROMPT = "a large red circle on the left, white background"


def spec_of(package: Path) -> Any:
    import coremltools as ct

    return ct.proto.Model_pb2.Model.FromString((package / MODEL).read_bytes())


@pytest.mark.parametrize(("file", "kind", "place", "name", "shape"), DEMANDS)
def test_each_array(swift: Path, file: str, kind: str, place: int, name: str, shape: list[int]) -> None:
    description = spec_of(swift / f"{file}.mlpackage").description
    assert (len(description.input), len(description.output)) == COUNTS[file]
    feature = getattr(description, kind)[place]
    assert feature.name == name
    assert list(feature.type.multiArrayType.shape) == shape
    assert feature.type.multiArrayType.dataType == 65568, "float32"


def test_verified_like_any_export(swift: Path) -> None:
    manifest = read_manifest(swift)
    assert manifest.recipe.layout == "swift"
    assert [entry.file.removesuffix(".mlpackage") for entry in manifest.artifacts] == list(COUNTS)
    for entry in manifest.artifacts:
        assert entry.parity is not None
        assert entry.parity.snr_db >= manifest.recipe.tolerances[entry.component].snr_db
    assert manifest.picture_psnr_db is not None
    assert manifest.picture_psnr_db >= manifest.recipe.picture_psnr_db
    # [B, C, 1, L] is what the 1×1 convolutions want: the text's one transpose is gone.
    assert "transpose" not in manifest.artifacts[1].ops


def test_the_chain_makes_the_picture_that_torch_makes(swift: Path, nano: Path) -> None:
    (made,), (wanted,) = pictures_of_artifacts(swift, [(PROMPT, 3)]), pictures_of_checkpoint(nano, [(PROMPT, 3)])
    assert compare(made, wanted).psnr_db >= read_manifest(swift).recipe.picture_psnr_db


def edit(package: Path, change: Callable[[Any], None]) -> None:
    spec = spec_of(package)
    change(spec.description)
    (package / MODEL).write_bytes(spec.SerializeToString())


BREAKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "renamed input": (
        lambda out: edit(out / "VAEDecoder.mlpackage", lambda d: setattr(d.input[0], "name", "latent")),
        "VAEDecoder.mlpackage: inputs are latent; Swift reads z",
    ),
    "order": (
        lambda out: edit(out / "Unet.mlpackage", lambda d: d.input.insert(0, d.input.pop())),
        "Unet.mlpackage: inputs are encoder_hidden_states, sample, timestep",
    ),
    "second output": (
        lambda out: edit(out / "Unet.mlpackage", lambda d: d.output.add().CopyFrom(d.output[0])),
        "Unet.mlpackage: outputs are noise_pred, noise_pred",
    ),
    "integer ids": (
        lambda out: edit(
            out / "TextEncoder.mlpackage", lambda d: setattr(d.input[0].type.multiArrayType, "dataType", 131104)
        ),
        "TextEncoder.mlpackage: input_ids is int32; Swift passes float32",
    ),
    "half output": (
        lambda out: edit(out / "Unet.mlpackage", lambda d: setattr(d.output[0].type.multiArrayType, "dataType", 65552)),
        "Unet.mlpackage: noise_pred is not a float32",
    ),
    "text as tokens": (
        lambda out: edit(
            out / "Unet.mlpackage",
            lambda d: d.input[2].type.multiArrayType.shape.__setitem__(slice(None), [1, 77, 128]),
        ),
        "Unet.mlpackage: encoder_hidden_states is [1, 77, 128]; Swift's has 4 dimensions",
    ),
    "widths that do not fit": (
        lambda out: edit(
            out / "Unet.mlpackage",
            lambda d: d.input[2].type.multiArrayType.shape.__setitem__(slice(None), [1, 64, 1, 77]),
        ),
        "Unet.mlpackage: encoder_hidden_states is [1, 64, 1, 77]; 64 must be 128",
    ),
    "no package": (lambda out: shutil.rmtree(out / "Unet.mlpackage"), "Unet.mlpackage: "),
    "no vocabulary": (lambda out: (out / "vocab.json").unlink(), "vocab.json: cannot be read"),
    "no end token": (
        lambda out: edit_json(out / "vocab.json", lambda v: v.pop("<|endoftext|>")),
        "vocab.json: has no <|endoftext|>",
    ),
    "last merge lost": (
        lambda out: (out / "merges.txt").write_bytes((out / "merges.txt").read_bytes()[:-1]),
        "merges.txt: does not end with a line feed",
    ),
    "line ends of another system": (
        lambda out: (out / "merges.txt").write_bytes((out / "merges.txt").read_bytes().replace(b"\n", b"\r\n")),
        "merges.txt: has carriage returns",
    ),
    "no pair": (lambda out: (out / "merges.txt").write_text("a\n"), "merges.txt: a line is not a pair of tokens: 'a'"),
    "no JSON": (lambda out: (out / "schedule.json").write_text("[]"), "schedule.json: cannot be read"),
    "field of another type": (
        lambda out: edit_json(out / "schedule.json", lambda v: v.update(image_size="64")),
        "schedule.json: field image_size is '64'",
    ),
    **{
        f"no {name}": (
            lambda out, name=name: edit_json(out / "schedule.json", lambda v: v.pop(name)),  # type: ignore[misc]
            f"schedule.json: field {name} is missing",
        )
        for name in (field.name for field in fields(Schedule))
    },
}


def test_nothing_is_wrong_with_the_export(swift: Path) -> None:
    assert faults(Bundle(swift)) == ()


@pytest.mark.parametrize("name", BREAKS)
def test_each_demand_can_fail(swift: Path, tmp_path: Path, name: str) -> None:
    out = Path(shutil.copytree(swift, tmp_path / "out", ignore=shutil.ignore_patterns("golden", "weights")))
    change, message = BREAKS[name]
    change(out)
    (found,) = faults(Bundle(out))
    assert found.startswith(message)


def test_an_export_that_breaks_a_demand_does_not_finish(swift: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(swift, tmp_path / "out", ignore=shutil.ignore_patterns("golden", "weights")))
    BREAKS["renamed input"][0](out)
    with pytest.raises(ConversionError, match="Swift reads z"):
        check_bundle(out, ("VAEDecoder.mlpackage",))


@pytest.mark.parametrize("component", COMPONENTS)
def test_packing_and_unpacking_are_inverse(component: str) -> None:
    arrays = random_inputs(component, NANO, seed=1)
    packed = SWIFT.pack(component, arrays)
    specs = SWIFT.inputs(component, COMPONENTS[component].input_specs(NANO))
    assert [(name, a.shape, str(a.dtype)) for name, a in packed.items()] == [(s.name, s.shape, s.dtype) for s in specs]
    forms = SWIFT.surfaces[component].inputs
    for name, form in forms.items():
        assert np.array_equal(form.unpack(torch.from_numpy(packed[form.name])).numpy(), arrays[name])


def test_module_paths_stay(tmp_path: Path) -> None:
    """keep_float and attribution go by them; token ids of CLIP's vocabulary are no float16 numbers."""
    config = replace(NANO, text_encoder={**NANO.text_encoder, "vocab_size": 49408, "num_hidden_layers": 1})
    component = COMPONENTS["text_encoder"]
    torch.manual_seed(0)
    module = component.build(config).eval().requires_grad_(False)
    paths = [path for path, _ in module.named_modules()]
    ids = np.arange(49408 - 77, 49408, dtype=np.int32)[None]
    wanted = module(torch.from_numpy(ids)).numpy()
    SWIFT.adapt("text_encoder", module, component.input_specs(config))
    assert [path for path, _ in module.named_modules()] == paths
    made = run_in_half(module, SWIFT.pack("text_encoder", {"input_ids": ids}), tmp_path)
    assert compare(made, wanted).snr_db >= 50


def run_in_half(module: torch.nn.Module, arrays: dict[str, Any], workdir: Path) -> Any:
    from md_export import mil
    from md_export.targets.coreml.lower import lower

    config = replace(NANO, text_encoder={**NANO.text_encoder, "vocab_size": 49408, "num_hidden_layers": 1})
    entry, scheme = COMPONENTS["text_encoder"], QuantScheme("float16", "float16")
    inputs = SWIFT.inputs("text_encoder", entry.input_specs(config))
    job = LoweringJob("text_encoder", module, inputs, entry.output_specs(config), arrays, scheme, (), workdir)
    (made,) = mil.load(lower(job).package).predict(arrays).values()
    return made


@pytest.mark.parametrize("rewrite", ["fold_timestep", "fold_x0"])
def test_a_fold_contradicts_the_layout(nano: Path, tmp_path: Path, rewrite: str) -> None:
    recipe = replace(load_recipe(builtin_recipe("coreml", "fp16")), rewrites=(rewrite,), layout="swift")
    with pytest.raises(RecipeError, match=rewrite):
        export(recipe, nano, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    assert layout_of(replace(recipe, layout=None)).file("unet") == "unet"


def test_the_flag_is_for_core_ml(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(RecipeError, match="fold_x0"):
        cli.main(["coreml", "--layout", "swift", "--rewrite", "fold_x0", "-o", out], standalone_mode=False)
    with pytest.raises(click.NoSuchOption):
        cli.main(["onnx", "--layout", "swift", "-o", out], standalone_mode=False)
