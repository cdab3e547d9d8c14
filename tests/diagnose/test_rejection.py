"""What a rejected export is told to change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from md_export.diagnose import rejection
from md_export.diagnose.rejection import next_steps
from md_export.spec.manifest import read_manifest
from support import Exported


@pytest.mark.parametrize(
    ("guidance_db", "said"), [(7.8, "lower guidance_snr_db there"), (12.0, "lower picture_psnr_db there")]
)
def test_the_threshold_that_was_not_met_is_named(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, guidance_db: float, said: str
) -> None:
    manifest = read_manifest(exported("onnx", "int8"))
    figures = [entry.parity for entry in manifest.artifacts]
    guided = tuple(
        dataclasses.replace(entry, parity=parity and dataclasses.replace(parity, guidance_snr_db=guidance_db))
        for entry, parity in zip(manifest.artifacts, figures, strict=True)
    )
    monkeypatch.setattr(rejection, "read_manifest", lambda _: dataclasses.replace(manifest, artifacts=guided))
    (line,) = next_steps(Path("rejected"), Path("checkpoint"), (), lambda _: None)
    assert line.startswith("next: md-export recipe new onnx-int8 -o mine.toml, if such a picture will do")
    assert said in line
