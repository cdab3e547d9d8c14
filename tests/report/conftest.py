"""A made-up verdict on the real golden cases: a report needs no export to be tested."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from md_export.parity.golden.folder import read_golden
from md_export.parity.verdict import ComponentVerdict, PictureVerdict, Verdict, Verification
from md_export.spec.artifact import ArtifactEntry, Measured, Parity
from md_export.spec.manifest import SCHEMA, Manifest
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from support import HOSTILE_PROMPT, Judged


def _entry(component: str) -> ArtifactEntry:
    return ArtifactEntry(
        component=component,
        file=f"{component}.onnx",
        sha256="0" * 64,
        bytes=1000,
        weights="int8",
        activations="int8_static",
        stored={"int8": 900, "float32": 100},
        ops={"Conv": 7, "Add": 3},
        inputs=(),
        outputs=(),
        rewrites=(),
        measured=Measured(1.0, 10**6),
        parity=Parity(41.5, 50.0, 0.999, 0.01),
    )


@pytest.fixture(scope="session")
def judged(nano: Path) -> Judged:
    """``onnx-int8``: the UNet falls short of its 20 dB, the pictures are off by 0.015, the first prompt is hostile."""
    golden = read_golden(nano / "golden")
    cases = (dataclasses.replace(golden.cases[0], prompt=HOSTILE_PROMPT), *golden.cases[1:])
    golden = dataclasses.replace(golden, cases=cases)
    recipe = load_recipe(builtin_recipe("onnx", "int8"))
    entries = tuple(_entry(name) for name in recipe.components)
    step = golden.index.one_step
    manifest = Manifest(SCHEMA, "0", "onnx", recipe, "a" * 64, "b" * 64, {}, step, entries, 36.1)
    fault = "snr 12.5 dB is below the recipe's 20 dB"
    results = tuple(
        ComponentVerdict(
            entry.component,
            entry.file,
            Parity(12.5 if entry.component == "unet" else 41.5, 50.0, 0.999, 0.01),
            recipe.tolerances[entry.component],
            (fault,) if entry.component == "unet" else (),
            None,
        )
        for entry in entries
    )
    verdict = Verdict("onnx", "onnx-int8", len(cases), results, PictureVerdict(36.1, 30.0, ()))
    pictures = tuple(np.clip(np.asarray(case.picture, np.float32) + 0.015, 0, 1) for case in cases)
    return "my-export", Verification(manifest, verdict, golden, pictures)
