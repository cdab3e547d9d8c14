"""What an app needs to read is inside each artifact, and an artifact of another checkpoint gives itself away."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.files import hash_of_files
from md_export.cli import cli
from md_export.engine.dependencies import notes_of
from md_export.models.tokenizers import tokenize
from md_export.models.walk import picture_from
from md_export.parity.judge import verify
from md_export.parity.opened_export import note_faults
from md_export.spec.artifact import ArtifactEntry
from md_export.spec.manifest import Manifest, read_manifest
from md_export.targets import TARGETS
from mutations import rehash
from support import ONE_EACH, Exported


def notes_in(out: Path, entry: ArtifactEntry) -> dict[str, str]:
    return dict(TARGETS[read_manifest(out).target].open().describe(out / entry.file).notes)


@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_each_artifact_tells_what_an_app_needs(exported: Exported, nano: Path, target: str, precision: str) -> None:
    out = exported(target, precision)
    manifest = read_manifest(out)
    said = notes_of(open_checkpoint(nano))
    for entry in manifest.artifacts:
        notes, shared = notes_in(out, entry), said[entry.component]
        assert {name: notes[name] for name in shared} == shared
        assert set(notes) - set(shared) == {"component", "inputs", "outputs"}
        assert notes["component"] == entry.component
        assert notes["inputs"].split(",") == [spec.name for spec in entry.inputs]
        assert notes["outputs"].split(",") == [spec.name for spec in entry.outputs]


def test_numbers_read_back_exactly(exported: Exported) -> None:
    manifest = read_manifest(exported(*ONE_EACH[-1]))
    notes = notes_in(exported(*ONE_EACH[-1]), manifest.artifacts[1])
    step, unet, decoder = manifest.one_step, *manifest.artifacts[1:]
    read = (int(notes["timestep"]), float(notes["a"]), float(notes["b"]), float(notes["scaling_factor"]))
    assert read == (step.timestep, step.a, step.b, step.scaling_factor)
    assert notes["prediction_type"] == step.prediction_type
    assert tuple(int(size) for size in notes["latent_shape"].split(",")) == unet.inputs[0].shape
    assert (1, 3, int(notes["image_size"]), int(notes["image_size"])) == decoder.outputs[0].shape
    files = {name: digest for name, digest in manifest.checkpoint_files.items() if name.startswith("unet/")}
    assert notes["source_sha256"] == hash_of_files(files)
    assert len(files) == 2


def test_token_ids_and_picture_by_the_notes_alone(nano: Path) -> None:
    checkpoint = open_checkpoint(nano)
    notes = notes_of(checkpoint)["text_encoder"]
    start, end, pad = (int(notes[f"{name}_token_id"]) for name in ("bos", "eos", "pad"))
    ids = tokenize(checkpoint.tokenizer_dir, "a large red circle", int(notes["text_length"]))[0].tolist()
    words = ids[1 : ids.index(end)]
    assert words
    assert ids == [start, *words, end] + [pad] * (len(ids) - len(words) - 2)
    image = np.linspace(-1.5, 1.5, 48, dtype=np.float32).reshape(1, 3, 4, 4)
    scaled = np.clip(image[0] * float(notes["image_scale"]) + float(notes["image_offset"]), 0, 1)
    assert np.array_equal(scaled.transpose(1, 2, 0), picture_from(image))


def test_an_artifact_by_another_tool_says_nothing(copy_of: Exported) -> None:
    out = copy_of("onnx", "int8")
    model = onnx.load(out / "unet.onnx")
    del model.metadata_props[:]
    onnx.save(model, out / "unet.onnx")
    rehash(out)
    (failure,) = verify(out).failures
    assert failure.startswith("unet: its metadata does not name its checkpoint")


def test_an_artifact_of_another_component(exported: Exported) -> None:
    manifest: Manifest = read_manifest(exported("onnx", "int8"))
    text, unet, _ = manifest.artifacts
    notes = notes_in(exported("onnx", "int8"), unet)
    assert note_faults(manifest, unet, notes) == []
    assert note_faults(manifest, text, notes) == ["its metadata names the component 'unet'; export again"]
    other = replace(manifest, checkpoint_sha256="f" * 64)
    assert len(note_faults(other, text, notes)) == 2


def test_an_artifact_of_other_weights_of_the_same_component(exported: Exported) -> None:
    """A manifest that is whole in itself, of a checkpoint in which this component, or another one, is another."""
    manifest: Manifest = read_manifest(exported("onnx", "int8"))
    unet = manifest.artifacts[1]
    notes = notes_in(exported("onnx", "int8"), unet)
    for folder, count in (("unet", 1), ("vae", 0)):
        files = {
            name: "f" * 64 if name.startswith(f"{folder}/") else digest
            for name, digest in manifest.checkpoint_files.items()
        }
        other = replace(manifest, checkpoint_files=files, checkpoint_sha256=hash_of_files(files))
        faults = note_faults(other, unet, notes)
        assert len(faults) == count
        assert all("it was made from another checkpoint" in fault for fault in faults)


def test_inspect_shows_what_an_artifact_holds(exported: Exported) -> None:
    path = exported("onnx", "int8") / "unet.onnx"
    shown = CliRunner().invoke(cli, ["inspect", str(path), "--json", "-"])
    assert shown.exit_code == 0
    found, _ = json.JSONDecoder().raw_decode(shown.output)
    assert found["notes"]["component"] == "unet"
    assert found["stored"]["int8"] > 0
    assert "scaling_factor" in shown.output.partition("metadata for apps")[2]
