"""Adapters and ControlNets of diffusers beside its UNet: read as they are, exported, and right."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from in_process import in_process
from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import write_checkpoint
from md_export.checkpoint.derived import write_with_component
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.errors import ConfigError
from md_export.models.diffusers_unet import DiffusersUNetConfig
from md_export.models.sampling.sampler import one_step
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.parity.metrics import snr_db
from md_export.rewrites import Consent, apply_rewrites
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from small_models import STABLE

PAIR = ("a cat", 0)
SIDE = 32
# The wiring of Stable Diffusion 1: the innermost level has no attention.
UNET = DiffusersUNetConfig(
    sample_size=16,
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=64,
    attention_head_dim=4,
)
CONFIG = dataclasses.replace(STABLE, denoiser=UNET)
KINDS = ["t2i_adapter", "controlnet"]
REWRITES = ("linear_to_conv2d", "group_norm_to_instance_norm", "fold_timestep")


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of CONFIG."""
    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    out = tmp_path_factory.mktemp("checkpoints") / "stable"
    write_checkpoint(out, CONFIG, seed=7, dtype="float32")
    return out


def theirs(kind: str, stable: Path) -> Any:
    """Random, as diffusers makes it; what begins as nothing made something."""
    diffusers: Any = pytest.importorskip("diffusers")
    torch.manual_seed(3)
    if kind == "t2i_adapter":
        sizes = {"in_channels": 1, "channels": [32, 64], "num_res_blocks": 1, "downscale_factor": 2}
        return diffusers.T2IAdapter(adapter_type="full_adapter", **sizes).eval()
    unet = diffusers.UNet2DConditionModel.from_pretrained(str(stable), subfolder="unet")
    widths = {"conditioning_channels": 1, "conditioning_embedding_out_channels": (8, 16)}
    net = diffusers.ControlNetModel.from_unet(unet, **widths).eval()
    for name, value in net.named_parameters():
        if not value.detach().any():
            torch.nn.init.normal_(value, std=0.3) if name.endswith("weight") else None
    return net


@pytest.fixture(scope="module")
def folders(stable: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoint with each of them, saved by diffusers."""
    made = {}
    for kind in KINDS:
        given, made[kind] = tmp_path_factory.mktemp("given"), tmp_path_factory.mktemp(kind)
        theirs(kind, stable).save_pretrained(given)
        write_with_component(made[kind], stable, given, kind)
    return made


def condition() -> np.ndarray[Any, np.dtype[np.float32]]:
    places = np.arange(SIDE) // 4 % 2
    return (places[None, :] ^ places[:, None]).astype(np.float32)[None, None]


def random_call(batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, 4, 16, 16, generator=generator),
        torch.tensor([999.0]),
        torch.randn(batch, 77, 64, generator=generator),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_both_compute_what_diffusers_computes(folders: dict[str, Path], stable: Path, kind: str) -> None:
    diffusers: Any = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel.from_pretrained(str(stable), subfolder="unet").eval()
    checkpoint, given, picture = open_checkpoint(folders[kind]), random_call(2), torch.from_numpy(condition())
    checkpoint.check()
    module, ours = checkpoint.module(kind), checkpoint.module("unet")
    with torch.no_grad():
        if kind == "controlnet":
            added = theirs(kind, stable)(*given, picture)
            more = {
                "down_block_additional_residuals": added.down_block_res_samples,
                "mid_block_additional_residual": added.mid_block_res_sample,
            }
            made = module(*given, picture)
            assert len(made) == 5
        else:
            residuals = [value.repeat(2, 1, 1, 1) for value in theirs(kind, stable)(picture)]
            more = {"down_intrablock_additional_residuals": [*residuals]}
            made = tuple(value.repeat(2, 1, 1, 1) for value in module(picture))
        wanted = unet(*given, **more).sample
        assert snr_db(ours(*given, *made).numpy(), wanted.numpy()) > 110
        # What is added is seen, and each in its place.
        assert snr_db(unet(*given).sample.numpy(), wanted.numpy()) < 60
        if kind == "controlnet":
            first, second, *others = made
            assert snr_db(ours(*given, second, first, *others).numpy(), wanted.numpy()) < 90


@pytest.mark.parametrize("kind", KINDS)
def test_rewritten_pairs_compute_the_same(folders: dict[str, Path], kind: str) -> None:
    checkpoint = open_checkpoint(folders[kind])
    case = GoldenCase("case", *PAIR, golden_source(checkpoint).generate(*PAIR))
    for name in ("controlnet", "unet") if kind == "controlnet" else ("unet",):
        module = checkpoint.module(name)
        records = apply_rewrites(REWRITES, name, module, one_step(checkpoint.config), Consent())
        assert [record.fired > 0 for record in records] == [True] * 3
        given = {key: torch.from_numpy(value) for key, value in case.inputs(name).items() if key != "timestep"}
        with torch.no_grad():
            made = module(*given.values())
        residuals = {key: value for key, value in case.inputs("unet").items() if key.startswith("residual_")}
        wanted = residuals if name == "controlnet" else {"": case.output("unet", "out_sample")}
        for value, golden in zip(made if isinstance(made, tuple) else (made,), wanted.values(), strict=True):
            assert snr_db(value.numpy(), golden) > 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": [32, 32], "channels": [32, 32]}, r"(block_out_)?channels=\(32, 32\).*\(32, 64\)"),
        ({"adapter_type": "light_adapter", "global_pool_conditions": True}, "only (adapter_type|global_pool)"),
        ({"surprise": 1}, "unknown field surprise"),
        ({"in_channels": 2}, "in_channels=2"),
        ({"num_res_blocks": 10**9, "layers_per_block": 2}, "absurd|layers_per_block=2"),
    ],
)
def test_what_is_for_another_unet_is_refused(
    folders: dict[str, Path], stable: Path, tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    write_with_component(tmp_path, stable, folders[kind] / kind, kind)
    file = tmp_path / kind / "config.json"
    values = json.loads(file.read_text())
    known = {name: value for name, value in changes.items() if name in values or name == "surprise"}
    file.write_text(json.dumps(values | known))
    with pytest.raises(Exception, match=message):
        open_checkpoint(tmp_path)


def test_an_adapter_needs_attention_in_the_outer_levels(folders: dict[str, Path], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "stable", STABLE, seed=7)
    (tmp_path / "out").mkdir()
    write_with_component(tmp_path / "out", tmp_path / "stable", folders["t2i_adapter"] / "t2i_adapter", "t2i_adapter")
    with pytest.raises(ConfigError, match="attention in every level except the last"):
        open_checkpoint(tmp_path / "out")


@pytest.fixture
def here() -> Iterator[None]:
    with in_process():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_controlnets_export_makes_what_torch_makes(folders: dict[str, Path], tmp_path: Path) -> None:
    checkpoint: Path = folders["controlnet"]
    (tmp_path / "golden").mkdir()
    write_golden(golden_source(open_checkpoint(checkpoint)), [PAIR], tmp_path / "golden")
    export(load_recipe(builtin_recipe("onnx", "fp32")), checkpoint, tmp_path / "out", tmp_path / "golden")
    (made,) = pictures_of_artifacts(tmp_path / "out", [PAIR], conditions=[condition()])
    (wanted,) = pictures_of_checkpoint(checkpoint, [PAIR], conditions=[condition()])
    assert snr_db(made, wanted) > 80
    assert snr_db(pictures_of_artifacts(tmp_path / "out", [PAIR])[0], wanted) < 70
