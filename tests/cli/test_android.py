"""docs/android/Generate.kt: it names what the files have, it compiles, and it makes the picture that we make.

LiteRT for Android and Android itself cannot be had here: tests/cli/android holds stand-ins with their documented
signatures, behind which a model runs in LiteRT's interpreter on this machine.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from md_export.engine.generate import pictures_of_artifacts
from md_export.models.sampling.generate import draw_noise
from md_export.models.sampling.pictures import to_bytes
from md_export.models.tokenizers import tokenize
from md_export.spec.manifest import Manifest, read_manifest
from md_export.targets import TARGETS
from md_export.targets.contract import METADATA
from md_export.targets.tflite.lower import SIGNATURE
from support import Exported

LISTING = Path(__file__).parents[2] / "docs" / "android" / "Generate.kt"
STANDINS = Path(__file__).with_name("android")
# Which of a table's fields each constant of the listing numbers.
FIELDS = {
    "MODEL_BUFFERS": schema.ModelAddBuffers,
    "MODEL_METADATA": schema.ModelAddMetadata,
    "METADATA_NAME": schema.MetadataAddName,
    "METADATA_BUFFER": schema.MetadataAddBuffer,
    "BUFFER_DATA": schema.BufferAddData,
    "BUFFER_OFFSET": schema.BufferAddOffset,
    "BUFFER_SIZE": schema.BufferAddSize,
}


def listing_faults(listing: str, manifest: Manifest, notes: dict[str, str]) -> list[str]:
    """What the listing has otherwise than the files."""
    text, unet, decoder = manifest.artifacts
    (ids,), (last,), (image,) = text.inputs, text.outputs, decoder.outputs
    wanted = [
        f'const val NAME = "{METADATA}"',
        f'const val SIGNATURE = "{SIGNATURE}"',
        *(f'"{spec.name}" to ' for spec in unet.inputs),
        *(f'"{entry.component}"' for entry in manifest.artifacts),
        f'run("{text.component}", mapOf("{ids.name}" to notes.framed(words)), "{last.name}")',
        f'run("{decoder.component}", mapOf("{decoder.inputs[0].name}" to latent), "{image.name}")',
        *(f"const val {name} = {slot_of(add)}" for name, add in FIELDS.items()),
    ]
    faults = [f"lacks {item}" for item in wanted if item not in listing]
    unknown = set(re.findall(r'text\("(\w+)"\)', listing)) - set(notes)
    faults += [f"reads the note {name}, which no file has" for name in sorted(unknown)]
    size = int(notes["image_size"])
    shapes = [(ids.dtype, "int32"), (image.shape, (1, 3, size, size)), (unet.inputs[0].shape, decoder.inputs[0].shape)]
    return faults + [f"takes {got} for {expected}" for got, expected in shapes if got != expected]


def slot_of(add: object) -> str:
    """The number that the generated schema gives a field."""
    (slot,) = re.findall(r"Slot\(\s*(\d+),", inspect.getsource(add))  # type: ignore[arg-type]
    return str(slot)


@pytest.fixture(scope="module")
def android(exported: Exported) -> Path:
    return exported("tflite", "int8")


def notes_of_unet(out: Path) -> dict[str, str]:
    return dict(TARGETS["tflite"].open().describe(out / "unet.tflite").notes)


def test_the_listing_agrees_with_the_files(android: Path) -> None:
    assert listing_faults(LISTING.read_text(), read_manifest(android), notes_of_unet(android)) == []


@pytest.mark.parametrize(
    ("was", "is_now"),
    [
        ('"input_ids"', '"ids"'),
        ('"sample" to', '"noise" to'),
        ('latent), "image")', 'latent), "picture")'),
        ('text("scaling_factor")', 'text("scale")'),
        ('SIGNATURE = "main"', 'SIGNATURE = "serving_default"'),
        ("MODEL_METADATA = 6", "MODEL_METADATA = 5"),
    ],
)
def test_a_listing_that_disagrees_is_noticed(android: Path, was: str, is_now: str) -> None:
    listing = LISTING.read_text()
    assert was in listing
    assert listing_faults(listing.replace(was, is_now), read_manifest(android), notes_of_unet(android))


@pytest.mark.slow
def test_the_listing_compiles_and_makes_our_picture(android: Path, tmp_path: Path) -> None:
    compiler, java = os.environ.get("KOTLINC") or shutil.which("kotlinc"), shutil.which("java")
    if compiler is None or java is None:
        pytest.skip("no Kotlin compiler: put kotlinc on the PATH, or name it in KOTLINC")
    jar = tmp_path / "listing.jar"
    sources = [str(LISTING), *(str(path) for path in sorted(STANDINS.glob("*.kt")))]
    built = subprocess.run([compiler, "-include-runtime", "-d", str(jar), *sources], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    prompt, seed, notes = "a small blue star at the top, night background", 3, notes_of_unet(android)
    side = int(notes["image_size"])
    text, unet, _ = read_manifest(android).artifacts
    _, *words = tokenize(android / "tokenizer", prompt, text.inputs[0].shape[1])[0].tolist()
    noise, pixels = tmp_path / "noise", tmp_path / "pixels"
    noise.write_bytes(draw_noise(seed, unet.inputs[0].shape).astype(">f4").tobytes())
    end = int(notes["eos_token_id"])
    ids = ",".join(str(word) for word in words[: words.index(end)])
    options = [f"-Dpython={sys.executable}", f"-Dexecute={STANDINS / 'execute.py'}"]
    ran = subprocess.run(
        [java, *options, "-cp", str(jar), "MainKt", str(android), ids, str(noise), str(pixels)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    argb = np.frombuffer(pixels.read_bytes(), ">u4").reshape(side, side)
    made = np.stack([argb >> 16 & 255, argb >> 8 & 255, argb & 255], axis=-1).astype(np.int64)
    (ours,) = pictures_of_artifacts(android, [(prompt, seed)])
    assert (argb >> 24 == 255).all()
    # Kotlin rounds halves up where numpy rounds them to even, and float products may differ in the last bit.
    assert np.abs(made - to_bytes(ours)).max() <= 1
