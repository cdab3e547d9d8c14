"""examples/ios: its tests pass, it compiles, and it makes the picture that md-export makes.

Core ML and SwiftUI cannot be had on Linux: tests/examples/apple holds stand-ins for Core ML with its documented
signatures, behind which a package runs in md_export.mil; the screen is parsed and not compiled.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from example_apps import EXAMPLES, NOT_GIVEN, PROMPT, Wanted, apart, export_of_many_steps, program, run, wanted
from md_export.spec.manifest import read_manifest
from support import Exported

IOS = EXAMPLES / "ios"
GREEN = "a green square"
STANDINS = Path(__file__).with_name("apple")


@pytest.mark.slow
def test_the_tests_of_the_package(exported: Exported, tmp_path: Path) -> None:
    swift = program("SWIFT", "swift")
    command: list[str | Path] = [swift, "test", "--package-path", IOS, "--scratch-path", tmp_path / "build"]
    kept = shutil.copytree(exported("coreml", "fp16"), tmp_path / "export")
    told = run(command, IOS, {"EXPORT": str(kept)})
    assert "Executed 9 tests, with 0 failures" in told


@pytest.mark.slow
def test_the_screen_is_swift(tmp_path: Path) -> None:
    swiftc = program("SWIFTC", "swiftc")
    (screen,) = (IOS / "Sources" / "MDExportUI").glob("*.swift")
    run([swiftc, "-parse", screen, *(IOS / "Sources" / "Sample").glob("*.swift")], tmp_path)
    broken = tmp_path / "Broken.swift"
    broken.write_text(screen.read_text().replace("struct GenerateScreen: View {", "struct GenerateScreen: View", 1))
    with pytest.raises(AssertionError, match="error:"):
        run([swiftc, "-parse", broken], tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generator of the app with the stand-ins, as a program."""
    swiftc, folder = program("SWIFTC", "swiftc"), tmp_path_factory.mktemp("ios")
    library = ["-emit-module", "-emit-library", "-static", "-parse-as-library"]
    run([swiftc, *library, "-module-name", "CoreML", "-o", "libCoreML.a", STANDINS / "CoreML.swift"], folder)
    kit = sorted((IOS / "Sources" / "MDExportKit").glob("*.swift"))
    run([swiftc, *library, "-module-name", "MDExportKit", "-o", "libMDExportKit.a", *kit], folder)
    sources = [IOS / "Sources" / "MDExportCoreML" / "Generator.swift", STANDINS / "main.swift"]
    linked = ["-I", ".", "-L", ".", "-lMDExportKit", "-lCoreML", "-o", "generate"]
    run([swiftc, "-warnings-as-errors", *sources, *linked], folder)
    return folder / "generate"


def picture_of_the_app(built: Path, export: Path, negative: str, ours: Wanted) -> NDArray[np.int64]:
    """Return the bytes ``[H, W, 3]`` of the picture that the app makes of the same noise."""
    draws, pixels = built.with_name("draws"), built.with_name("pixels")
    draws.write_bytes(ours.draws.astype("<f4").tobytes())
    style = read_manifest(export).recipe.name
    environment = {"PYTHON": sys.executable, "EXECUTE": str(STANDINS / "execute.py"), "HOME": str(built.parent)}
    environment |= {"XDG_CACHE_HOME": str(built.parent), "PYTHONPATH": str(EXAMPLES.parent)}
    run([built, export.parent, style, PROMPT, negative, draws, pixels], built.parent, environment)
    made = np.frombuffer(pixels.read_bytes(), np.uint8).reshape(*ours.pixels.shape[:2], 4)
    assert (made[..., 3] == 255).all()
    return made[..., :3].astype(np.int64)


@pytest.mark.slow
def test_a_picture_in_one_step(built: Path, exported: Exported, tmp_path: Path) -> None:
    export = shutil.copytree(exported("coreml", "fp16"), tmp_path / "plain")
    ours = wanted(export, NOT_GIVEN)
    assert apart(picture_of_the_app(built, export, NOT_GIVEN, ours), ours) <= 1


@pytest.mark.slow
def test_a_picture_in_many_steps(built: Path, nano: Path, tmp_path: Path) -> None:
    """With guidance, with the recipe's negative prompt and with another, and with noise after a step."""
    export = tmp_path / "steps"
    export_of_many_steps("coreml", nano, export)
    ours = {negative: wanted(export, negative) for negative in (NOT_GIVEN, GREEN)}
    made = {negative: picture_of_the_app(built, export, negative, ours[negative]) for negative in ours}
    assert apart(made[NOT_GIVEN], ours[NOT_GIVEN]) <= 1
    assert apart(made[GREEN], ours[GREEN]) <= 1
    assert apart(made[GREEN], ours[NOT_GIVEN]) > 10
