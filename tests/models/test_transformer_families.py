"""Pictures of small random PixArt and DiT folders are those of diffusers' own pipelines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import write_checkpoint
from md_export.engine.generate import pictures_of_checkpoint
from md_export.errors import CheckpointError, UsageError
from md_export.models.sampling.generate import Pipeline
from md_export.models.tokenizers import Labels
from md_export.models.values import ATTENTION_MASK
from md_export.models.walk import Tensors
from md_export.spec.sampler import sampler_of
from md_export.spec.tensors import Float32
from mutations import edit_json
from small_models import SIGMA

PROMPT, NEGATIVE = "A red cat, sitting", "green"
STEPS = 2


def diffusers_pipeline(kind: str, folder: Path) -> Any:
    """As ``from_pretrained`` opens the folder, with its own scheduler."""
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    pipeline = getattr(diffusers, kind).from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def of_pixart(kind: str, folder: Path, guidance: float, **more: Any) -> Float32:
    given = {"generator": torch.Generator().manual_seed(0), "use_resolution_binning": False, "output_type": "np"}
    prompts = {"prompt": PROMPT, "negative_prompt": NEGATIVE if guidance > 1 else ""}
    pipeline = diffusers_pipeline(kind, folder)
    if pipeline.transformer.config.use_additional_conditions:
        # By which size the pipeline decides to give them; its pictures stay as small as they are.
        side = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
        pipeline.transformer.register_to_config(sample_size=128)
        given |= {"height": side, "width": side}
    made = pipeline(
        **prompts, num_inference_steps=STEPS, guidance_scale=guidance, clean_caption=False, **{**given, **more}
    )
    return np.asarray(made.images[0], np.float32)


def of_dit(folder: Path, guidance: float, label: int) -> Float32:
    made = diffusers_pipeline("DiTPipeline", folder)(
        [label],
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=STEPS,
        output_type="np",
    )
    return np.asarray(made.images[0], np.float32)


def ours(folder: Path, prompt: str, guidance: float, negative: str | None = None) -> Float32:
    (picture,) = pictures_of_checkpoint(
        folder, [(prompt, 0)], sampler=sampler_of(STEPS, guidance, None), negative=negative
    )
    return picture


def most(a: Float32, b: Float32) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


@pytest.fixture(scope="module")
def sigma_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "sigma"
    write_checkpoint(out, SIGMA, seed=7, dtype="float32")
    return out


@pytest.mark.seen("PixArt-α and -Σ folders", "the same pictures as diffusers' pipelines")
@pytest.mark.parametrize("guidance", [4.5, 1.0])
@pytest.mark.parametrize("name", ["pixart", "sigma"])
def test_pixart(name: str, guidance: float, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(f"{name}_checkpoint")
    kind = {"pixart": "PixArtAlphaPipeline", "sigma": "PixArtSigmaPipeline"}[name]
    negative = NEGATIVE if guidance > 1 else None
    wanted = of_pixart(kind, folder, guidance)
    assert most(ours(folder, PROMPT, guidance, negative), wanted) < 1e-4
    assert most(ours(folder, PROMPT.replace("cat", "dog"), guidance, negative), wanted) > 1e-3
    if negative:
        assert most(ours(folder, PROMPT, guidance, None), wanted) > 1e-3


def test_pixart_without_its_masks_is_another_picture(pixart_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: Callable[..., Tensors] = Pipeline._given

    def unmasked(*args: Any) -> Tensors:
        values = given(*args)
        return {key: np.ones_like(v) if key.startswith(ATTENTION_MASK.key) else v for key, v in values.items()}

    monkeypatch.setattr(Pipeline, "_given", unmasked)
    wanted = of_pixart("PixArtAlphaPipeline", pixart_checkpoint, 1.0)
    assert most(ours(pixart_checkpoint, PROMPT, 1.0), wanted) > 1e-3


@pytest.mark.seen("DiT folder, class labels", "the same pictures as diffusers' pipeline; a class by number or name")
@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_dit(dit_checkpoint: Path, guidance: float) -> None:
    wanted = of_dit(dit_checkpoint, guidance, 3)
    assert most(ours(dit_checkpoint, "3", guidance), wanted) < 1e-4
    assert most(ours(dit_checkpoint, "tiger cat", guidance), wanted) < 1e-4, "by its name"
    assert most(ours(dit_checkpoint, "4", guidance), wanted) > 1e-3


@pytest.mark.parametrize(
    ("label", "hint"), [("1000", "from 0 to 999"), ("-1", "from 0"), ("tigre cat", "did you mean tiger cat")]
)
def test_a_class_that_is_not_there_is_one_line(dit_checkpoint: Path, label: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        ours(dit_checkpoint, label, 1.0)
    assert "\n" not in str(caught.value)


def test_golden_classes_go_by_name() -> None:
    """As far as a name leads to its class: a prompt of digits is a number."""
    labels = Labels(1000, {"7": 0, "": 1, "tench": 2, "Tinca tinca": 2})
    assert [labels.prompt(number) for number in range(4)] == ["0", "1", "tench", "3"]
    assert [labels.label(labels.prompt(number)) for number in range(4)] == [0, 1, 2, 3]


@pytest.mark.seen("PixArt and DiT as older diffusers saved them", "recognised by norm_type")
@pytest.mark.parametrize(
    ("folder", "norm"), [("pixart_checkpoint", "ada_norm_single"), ("dit_checkpoint", "ada_norm_zero")]
)
def test_folders_of_older_versions_are_recognized(
    folder: str, norm: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The first checkpoints were saved as Transformer2DModel, which diffusers tells apart by ``norm_type``."""
    made: Path = request.getfixturevalue(folder)
    old = Path(shutil.copytree(made, tmp_path / "old"))
    config = old / "transformer" / "config.json"
    assert json.loads(config.read_text())["norm_type"] == norm
    edit_json(config, lambda fields: fields.update(_class_name="Transformer2DModel"))
    assert open_checkpoint(old).config == open_checkpoint(made).config
    edit_json(config, lambda fields: fields.update(norm_type="layer_norm"))
    with pytest.raises(CheckpointError, match="Transformer2DModel"):
        open_checkpoint(old)
