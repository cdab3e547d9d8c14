"""The family of a folder, by the classes that its files name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from md_export.checkpoint import read_config
from md_export.errors import CheckpointError
from md_export.models.families import family_of


def written(folder: Path, files: dict[str, dict[str, object]]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.seen("SD3, FLUX, SANA, Kandinsky and other families", "named as that family")
@pytest.mark.parametrize(
    ("pipeline", "folder", "model", "title"),
    [
        ("StableDiffusion3Pipeline", "transformer", "SD3Transformer2DModel", "Stable Diffusion 3"),
        ("FluxPipeline", "transformer", "FluxTransformer2DModel", r"FLUX\.1"),
        ("Flux2Pipeline", "transformer", "Flux2Transformer2DModel", r"FLUX\.2"),
        ("SanaPipeline", "transformer", "SanaTransformer2DModel", "SANA"),
        ("HunyuanDiTPipeline", "transformer", "HunyuanDiT2DModel", "HunyuanDiT"),
        ("AuraFlowPipeline", "transformer", "AuraFlowTransformer2DModel", "AuraFlow"),
        ("WanPipeline", "transformer", "WanTransformer3DModel", "Wan"),
        ("LTXPipeline", "transformer", "LTXVideoTransformer3DModel", "LTX-Video"),
        ("Kandinsky3Pipeline", "unet", "Kandinsky3UNet", "Kandinsky"),
        ("KandinskyV22Pipeline", "unet", "MovedUNet", "Kandinsky"),
        ("SnapFusionPipeline", "unet", "SnapFusionUNet", "SnapFusion"),
        ("StableCascadeDecoderPipeline", "decoder", "StableCascadeUNet", "Stable Cascade"),
    ],
)
def test_another_family_is_named(tmp_path: Path, pipeline: str, folder: str, model: str, title: str) -> None:
    config: dict[str, dict[str, object]] = {f"{folder}/config.json": {"_class_name": model}}
    index: dict[str, dict[str, object]] = {"model_index.json": {"_class_name": pipeline}}
    with pytest.raises(
        CheckpointError, match=f"is {title} .*{pipeline}.*, which is not supported; md-export reads Mobile"
    ):
        read_config(written(tmp_path, config | index))
    (tmp_path / "model_index.json").unlink()
    if not model.startswith("Moved"):
        with pytest.raises(CheckpointError, match=f"is {title} .*{model}"):
            read_config(tmp_path)


def test_an_unknown_transformer_is_named_by_its_class(tmp_path: Path) -> None:
    written(tmp_path, {"transformer/config.json": {"_class_name": "NewTransformer2DModel"}})
    with pytest.raises(CheckpointError, match=r"transformer/config\.json has the class NewTransformer2DModel"):
        read_config(tmp_path)


def test_the_pipelines_name_alone_refuses_nothing(stable_checkpoint: Path, nano: Path) -> None:
    """Fine-tuned folders keep the index of what they were made from."""
    assert family_of(read_config(stable_checkpoint)).form.name == "sd15"
    assert family_of(read_config(nano)).form.name == "md"
