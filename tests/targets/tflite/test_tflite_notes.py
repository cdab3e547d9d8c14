"""Notes inside a .tflite file: any text, in every precision, with the rest of the file as it would be without."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from md_export.errors import RuntimeFault
from md_export.spec.recipe import QuantScheme
from md_export.spec.tensors import TensorSpec
from md_export.targets import TARGETS
from md_export.targets.contract import Description, Lowered, LoweringJob

target = TARGETS["tflite"].open()
SCHEMES = {
    "fp32": QuantScheme("float32", "float32"),
    "fp16": QuantScheme("float16", "float32"),
    "int8": QuantScheme("int8", "int8_dynamic"),
}
# Longer than what the quantizer keeps among the tables: it moves such a buffer behind them.
NOTES = {"source_sha256": "0f" * 32, "a": "14.615", "odd": 'é "quoted" \\ \n', "long": "x" * 2000}


def exported(job: LoweringJob, lowered: Lowered, scheme: str, path: Path) -> Path:
    lowered.quantize(replace(job, scheme=SCHEMES[scheme])).save(path)
    return path


def job_of(workdir: Path) -> LoweringJob:
    torch.manual_seed(0)
    # Large enough for the quantizer to write weights behind the tables.
    module = nn.Sequential(nn.Linear(600, 700), nn.SiLU(), nn.Linear(700, 600)).eval()
    given, made = TensorSpec("x", (1, 600), "float32"), TensorSpec("y", (1, 600), "float32")
    return LoweringJob("part", module, (given,), (made,), {"x": given.zeros()}, SCHEMES["fp32"], (), workdir)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """By scheme, with notes and without."""
    root = tmp_path_factory.mktemp("notes")
    made = {}
    for noted in (True, False):
        job = replace(job_of(root), notes=NOTES if noted else {})
        lowered = target.lower(job)
        for scheme in SCHEMES:
            made[scheme, noted] = exported(job, lowered, scheme, root / f"{scheme}-{noted}.tflite")
    return made


@pytest.mark.parametrize("scheme", SCHEMES)
def test_notes_come_back_and_change_nothing_else(scheme: str, files: dict[tuple[str, bool], Path]) -> None:
    noted, plain = (target.describe(files[scheme, with_notes]) for with_notes in (True, False))
    assert noted.notes == NOTES
    assert plain.notes == {}
    assert without_notes(noted) == without_notes(plain)
    assert 0 < files[scheme, True].stat().st_size - files[scheme, False].stat().st_size < 4096


def without_notes(found: Description) -> dict[str, object]:
    return {name: value for name, value in asdict(found).items() if name != "notes"}


def test_a_damaged_note_is_refused(files: dict[tuple[str, bool], Path], tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(files["int8", True].read_bytes().replace(b'{"a":"14.615"', b'{"a":[14.615]'))
    with pytest.raises(RuntimeFault, match=r"x\.tflite: corrupted"):
        target.describe(path)
