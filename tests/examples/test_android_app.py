"""examples/android: its tests pass, it compiles, and it makes the picture that md-export makes.

LiteRT for Android and Android itself cannot be had here: tests/examples/android holds stand-ins with their documented
signatures, behind which a model runs in LiteRT's interpreter on this machine. The screen is left out.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from example_apps import EXAMPLES, NOT_GIVEN, PROMPT, export_of_many_steps, kotlinc, program, run, wanted
from support import Exported

APP = EXAMPLES / "android" / "app" / "src"
METADATA = APP / "main" / "kotlin" / "mdexport" / "Metadata.kt"
STANDINS = Path(__file__).with_name("android")
# Which of a table's fields each constant of the app numbers.
FIELDS = {
    "MODEL_BUFFERS": schema.ModelAddBuffers,
    "MODEL_METADATA": schema.ModelAddMetadata,
    "METADATA_NAME": schema.MetadataAddName,
    "METADATA_BUFFER": schema.MetadataAddBuffer,
    "BUFFER_DATA": schema.BufferAddData,
    "BUFFER_OFFSET": schema.BufferAddOffset,
    "BUFFER_SIZE": schema.BufferAddSize,
}


def field_faults(source: str) -> list[str]:
    """Numbers of fields that the app has otherwise than LiteRT's schema."""
    return [name for name, add in FIELDS.items() if f"const val {name} = {slot_of(add)}\n" not in source]


def slot_of(add: object) -> str:
    """The number that the generated schema gives a field."""
    (slot,) = re.findall(r"Slot\(\s*(\d+),", inspect.getsource(add))  # type: ignore[arg-type]
    return str(slot)


def test_fields_are_numbered_as_in_the_schema() -> None:
    assert field_faults(METADATA.read_text()) == []
    assert field_faults(METADATA.read_text().replace("MODEL_METADATA = 6", "MODEL_METADATA = 5")) == ["MODEL_METADATA"]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The app without its screen, with the stand-ins, as a program that takes arguments."""
    compiler, java = kotlinc(), program("JAVA", "java")
    jar, asserts = tmp_path_factory.mktemp("android") / "app.jar", library_of(Path(compiler), "kotlin-test.jar")
    main = [path for path in (APP / "main" / "kotlin" / "mdexport").glob("*.kt") if path.stem != "MainActivity"]
    sources = sorted([*main, *(APP / "test").rglob("*.kt"), *STANDINS.glob("*.kt")])
    # One stand-in is for a name of kotlin.test.
    options = ["-Xallow-kotlin-package", "-include-runtime", "-cp", asserts, "-d", jar]
    run([compiler, *options, *sources], jar.parent)
    given = [f"-Dpython={sys.executable}", f"-Dexecute={STANDINS / 'execute.py'}"]
    return [java, *given, "-cp", f"{jar}:{asserts}", "MainKt"]


def library_of(compiler: Path, name: str) -> Path:
    found = compiler.resolve().parents[1] / "lib" / name
    assert found.is_file(), f"{compiler} has no {found}"
    return found


@pytest.mark.slow
def test_the_tests_of_the_app(command: list[str]) -> None:
    assert "4 passed" in run(command, EXAMPLES)


def picture_of_the_app(command: list[str], export: Path, negative: str, scratch: Path) -> int:
    """Return the largest difference, in levels of 255, between the picture of the app and that of md-export."""
    draws, pixels, ours = scratch / "draws", scratch / "pixels", wanted(export, negative)
    draws.write_bytes(ours.draws.astype(">f4").tobytes())
    run([*command, export, PROMPT, negative, draws, pixels], scratch, {"PYTHONPATH": str(EXAMPLES.parent)})
    argb = np.frombuffer(pixels.read_bytes(), ">u4").reshape(ours.pixels.shape[:2])
    assert (argb >> 24 == 255).all()
    made = np.stack([argb >> 16 & 255, argb >> 8 & 255, argb & 255], axis=-1).astype(np.int64)
    # Kotlin rounds halves up where numpy rounds them to even, and float products may differ in the last bit.
    return int(np.abs(made - ours.pixels).max())


@pytest.mark.slow
def test_an_app_for_android_makes_our_picture_in_one_step(
    command: list[str], exported: Exported, tmp_path: Path
) -> None:
    # A folder of one export, as the app finds it.
    models = tmp_path / "models"
    shutil.copytree(exported("tflite", "int8"), models / "plain")
    assert picture_of_the_app(command, models / "plain", NOT_GIVEN, tmp_path) <= 1


@pytest.mark.slow
def test_an_app_for_android_makes_our_picture_in_many_steps(command: list[str], nano: Path, tmp_path: Path) -> None:
    """With guidance, with the recipe's negative prompt and with another, and with noise after a step."""
    export_of_many_steps("tflite", nano, tmp_path / "steps")
    for negative in (NOT_GIVEN, "a green square"):
        assert picture_of_the_app(command, tmp_path / "steps", negative, tmp_path) <= 1
