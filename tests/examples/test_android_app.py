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
from numpy.typing import NDArray

from example_apps import EXAMPLES, NOT_GIVEN, PROMPT, Wanted, apart, export_of_many_steps, kotlinc, program, run, wanted
from support import Exported

APP = EXAMPLES / "android" / "app" / "src"
METADATA = APP / "main" / "kotlin" / "mdexport" / "Metadata.kt"
GREEN = "a green square"
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
    options: list[str | Path] = ["-Xallow-kotlin-package", "-include-runtime", "-cp", asserts, "-d", jar]
    run([compiler, *options, *sources], jar.parent)
    given = [f"-Dpython={sys.executable}", f"-Dexecute={STANDINS / 'execute.py'}"]
    return [java, *given, "-cp", f"{jar}:{asserts}", "MainKt"]


def library_of(compiler: Path, name: str) -> Path:
    found = compiler.resolve().parents[1] / "lib" / name
    assert found.is_file(), f"{compiler} has no {found}"
    return found


@pytest.mark.slow
def test_the_tests_of_the_app(command: list[str]) -> None:
    assert "6 passed" in run(command, EXAMPLES)


def picture_of_the_app(command: list[str], export: Path, negative: str, ours: Wanted) -> NDArray[np.int64]:
    """Return the bytes ``[H, W, 3]`` of the picture that the app makes of the same noise."""
    scratch = export.parent
    draws, pixels = scratch / "draws", scratch / "pixels"
    draws.write_bytes(ours.draws.astype(">f4").tobytes())
    run([*command, export, PROMPT, negative, draws, pixels], scratch, {"PYTHONPATH": str(EXAMPLES.parent)})
    argb = np.frombuffer(pixels.read_bytes(), ">u4").reshape(ours.pixels.shape[:2])
    assert (argb >> 24 == 255).all()
    return np.stack([argb >> 16 & 255, argb >> 8 & 255, argb & 255], axis=-1).astype(np.int64)


@pytest.mark.slow
def test_an_app_for_android_makes_our_picture_in_one_step(
    command: list[str], exported: Exported, tmp_path: Path
) -> None:
    export = shutil.copytree(exported("tflite", "int8"), tmp_path / "plain")
    ours = wanted(export, NOT_GIVEN)
    # Kotlin rounds halves up where numpy rounds them to even, and float products may differ in the last bit.
    assert apart(picture_of_the_app(command, export, NOT_GIVEN, ours), ours) <= 1


@pytest.mark.slow
def test_an_app_for_android_makes_our_picture_in_many_steps(command: list[str], nano: Path, tmp_path: Path) -> None:
    """With guidance, with the recipe's negative prompt and with another, and with noise after a step."""
    export = tmp_path / "steps"
    export_of_many_steps("tflite", nano, export)
    ours = {negative: wanted(export, negative) for negative in (NOT_GIVEN, GREEN)}
    made = {negative: picture_of_the_app(command, export, negative, ours[negative]) for negative in ours}
    assert apart(made[NOT_GIVEN], ours[NOT_GIVEN]) <= 1
    assert apart(made[GREEN], ours[GREEN]) <= 1
    assert apart(made[GREEN], ours[NOT_GIVEN]) > 10
