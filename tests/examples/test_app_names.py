"""Names in the sources of the sample apps are those of an export: files, fields, metadata, inputs and outputs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from app_vectors import FILE
from example_apps import EXAMPLES
from md_export.checkpoint import open_checkpoint
from md_export.spec.artifact import ArtifactEntry
from md_export.spec.given import JOIN, MANIFEST
from md_export.spec.manifest import AddedLora, Manifest, read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.sampler import ManySteps
from md_export.targets.contract import METADATA
from md_export.targets.tflite.lower import SIGNATURE
from support import Exported

SWIFT = EXAMPLES / "ios" / "Sources"
KOTLIN = EXAMPLES / "android" / "app" / "src" / "main" / "kotlin" / "mdexport"
APPS = {"swift": SWIFT, "kotlin": KOTLIN}
TARGETS = {"swift": "coreml", "kotlin": "tflite"}
# Each part of a manifest by the name that Swift gives it.
PARTS = {"Manifest": Manifest, "Recipe": Recipe, "Artifact": ArtifactEntry, "Lora": AddedLora, "Steps": ManySteps}


def sources(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*.*t")) if path.suffix in (".swift", ".kt"))


def metadata_faults(source: str) -> list[str]:
    """Fields that an app reads from metadata and no artifact has, and those of the steps that it does not read."""
    notes = [walk["notes"] for walk in json.loads(FILE.read_text())["samplers"]]
    # Not every artifact has these; the first two differ between components.
    known = {"inputs", "outputs", "zeros_for_empty"}.union(*notes)
    read = set(re.findall(r'(?:floats|integers|column|text)\("(\w+)"|(?:values|notes)\["(\w+)"\]', source))
    names = {one or other for one, other in read}
    needed = known - {"prediction_type", "sampler", "embedded_guidance"}
    return [f"reads {name}" for name in sorted(names - known)] + [f"lacks {name}" for name in sorted(needed - names)]


def surface_faults(source: str, manifest: Manifest) -> list[str]:
    """Components, inputs and outputs that an app does not name, or names in another shape than it passes."""
    text, unet, decoder = manifest.artifacts
    (ids,), (last,), (image,) = text.inputs, text.outputs, decoder.outputs
    names = [entry.component for entry in manifest.artifacts] + [spec.name for spec in (*unet.inputs, ids, last, image)]
    faults = [f"lacks {name}" for name in (*names, decoder.inputs[0].name) if f'"{name}"' not in source]
    shapes = [(ids.dtype, "int32"), (image.shape[:2], (1, 3)), (unet.inputs[0].shape, decoder.inputs[0].shape)]
    return faults + [f"takes {got} for {expected}" for got, expected in shapes if got != expected]


def file_faults(source: str, wanted: Mapping[str, str]) -> list[str]:
    return [f"lacks {name}" for name, text in wanted.items() if text not in source]


@pytest.fixture(scope="module", params=APPS)
def app(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_metadata(app: str) -> None:
    assert metadata_faults(sources(APPS[app])) == []


def test_inputs_and_outputs(app: str, exported: Exported) -> None:
    target = TARGETS[app]
    manifest = read_manifest(exported(target, {"coreml": "fp16", "tflite": "int8"}[target]))
    assert surface_faults(sources(APPS[app]), manifest) == []


def test_files(app: str, nano: Path) -> None:
    """What an export has beside its artifacts, and CLIP's pattern of words, with white space spelled out."""
    wanted = {name: f'"{name}"' for name in (MANIFEST, "vocab.json", "merges.txt", "tokenizer.json")}
    wanted["pattern"] = pattern_of(nano)
    wanted |= {"swift": {"join": f'"{JOIN}"', "metadata": f'"{METADATA}."'}, "kotlin": {"metadata": f'"{METADATA}"'}}[
        app
    ]
    source = sources(APPS[app])
    assert file_faults(source, wanted) == []
    assert file_faults(source.replace("|'ve|", "|"), wanted) == ["lacks pattern"]
    assert file_faults(source.replace(MANIFEST, "export.json"), wanted) == [f"lacks {MANIFEST}"]


def pattern_of(nano: Path) -> str:
    from md_export.models.tokenizers import _tokenizer

    steps = json.loads(_tokenizer(open_checkpoint(nano).tokenizers["tokenizer"])._tokenizer.to_str())["pre_tokenizer"]
    pattern = str(steps["pretokenizers"][0]["pattern"]["Regex"])
    special, words = pattern.split("|'s|")
    assert special == r"<\|startoftext\|>|<\|endoftext\|>"
    words = words.replace(r"[\p{L}]", r"\p{L}").replace(r"[\p{N}]", r"\p{N}")
    return "'s|" + words.replace(r"[^\s", r"[^\t-\r\u0085\p{Z}")


def manifest_faults(source: str) -> list[str]:
    """Fields of the Swift structs that the manifest does not have."""
    faults, part = [], ""
    for line in source.splitlines():
        if found := re.search(r"struct (\w+): Decodable", line):
            part = found[1]
        if (found := re.match(r" +public let (\w+): ", line)) and part in PARTS:
            # Fields of the outer struct come after its parts, with less indent.
            owner = PARTS["Manifest" if line.startswith("    public") else part]
            if found[1] not in {field.name for field in dataclasses.fields(owner)}:
                faults.append(f"{owner.__name__} has no {found[1]}")
        if line == "}":
            part = ""
    return faults


def test_fields_of_the_manifest_in_swift() -> None:
    source = (SWIFT / "MDExportKit" / "Export.swift").read_text()
    assert manifest_faults(source) == []
    assert manifest_faults(source.replace("let scale:", "let weight:")) == ["AddedLora has no weight"]
    assert manifest_faults(source.replace("let target:", "let format:")) == ["Manifest has no format"]


def test_fields_of_the_manifest_in_kotlin() -> None:
    source = (KOTLIN / "Export.kt").read_text()
    fields = {field.name for part in PARTS.values() for field in dataclasses.fields(part)}
    read = set(re.findall(r'(?:get|opt|is)\w+\("(\w+)"\)', source))
    assert len(read) >= 8
    assert read <= fields


@pytest.mark.parametrize(
    ("was", "is_now", "fault"),
    [("scaling_factor", "scale_factor", "reads scale_factor"), ('"x0_of_x"', '"earlier"', "lacks x0_of_x")],
)
def test_another_name_in_the_metadata_is_noticed(app: str, was: str, is_now: str, fault: str) -> None:
    source = sources(APPS[app])
    assert was in source
    assert fault in metadata_faults(source.replace(was, is_now))


@pytest.mark.parametrize("name", ["input_ids", "encoder_hidden_states", "last_hidden_state", "image", "latent"])
def test_another_name_of_an_input_is_noticed(app: str, name: str, exported: Exported) -> None:
    manifest = read_manifest(exported("tflite", "int8"))
    assert surface_faults(sources(APPS[app]).replace(f'"{name}"', '"other"'), manifest) == [f"lacks {name}"]


def test_the_signature_is_that_of_the_files() -> None:
    assert f'SIGNATURE = "{SIGNATURE}"' in (KOTLIN / "Generator.kt").read_text()
