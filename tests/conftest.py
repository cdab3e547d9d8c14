"""Shared artifacts: converting is what takes time, so each export is made once a session and only when asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from md_export.errors import MissingExtraError
from md_export.models.config import ModelConfig
from md_export.models.unet import MDUNetConfig
from md_export.models.vae import VAEConfig
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint
from md_export.system import isolation, process
from support import Exported, installed, made_once, shared_folder


@pytest.fixture(scope="session", autouse=True)
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests share what exports make, and leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MD_EXPORT_CACHE", str(shared_folder(tmp_path_factory) / "cache"))
        yield


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache for one test, whose exports are wrong on purpose or must be made anew."""
    monkeypatch.setenv("MD_EXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def other_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Worker processes of a new server, which shares nothing with the one of the other tests, imports included."""
    pool = process.Pool()
    monkeypatch.setattr(isolation, "POOL", pool)
    yield
    pool.close()


@pytest.fixture(scope="session")
def nano() -> Path:
    return nano_checkpoint()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, nano: Path) -> Exported:
    """``exported("coreml", "fp16")`` → an export of the nano checkpoint. Do not change it; see ``copy_of``.

    ``fp16+swift`` is the same in that layout.
    """
    from md_export.engine.export import export

    def make(target: str, precision: str, out: Path) -> None:
        installed(target)
        name, _, layout = precision.partition("+")
        recipe = load_recipe(builtin_recipe(target, name))
        export(replace(recipe, layout="swift") if layout else recipe, nano, out)

    return made_once(tmp_path_factory, "exports", make)


@pytest.fixture(scope="session")
def swift(exported: Exported) -> Path:
    """The nano checkpoint in the layout of Apple's Swift package."""
    return exported("coreml", "fp16+swift")


@pytest.fixture
def copy_of(tmp_path: Path, exported: Exported) -> Exported:
    """As ``exported``, but a copy that a test may damage."""

    def get(target: str, precision: str) -> Path:
        return Path(shutil.copytree(exported(target, precision), tmp_path / f"{target}-{precision}"))

    return get


@pytest.fixture(scope="session")
def other_config() -> ModelConfig:
    """Other widths, head size, expansion, activation and wiring than the nano checkpoint has."""
    return ModelConfig(
        text_encoder={
            "vocab_size": 600,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 77,
            "bos_token_id": 598,
            "eos_token_id": 599,
        },
        denoiser=MDUNetConfig(
            sample_size=8,
            block_out_channels=(16, 48, 64),
            cross_attention_dim=48,
            attention_head_dim=8,
            norm_num_groups=4,
            time_embed_dim=64,
            ff_expansion=2,
            ff_activation="gelu",
            down_layers=1,
            up_layers=1,
            sep_conv_expansion=3,
            sep_conv_expansion_of="out",
            sep_conv_time="after_dw",
            unified_inner=False,
            separable_downsamplers=True,
        ),
        vae=VAEConfig(
            block_out_channels=(8, 16, 16),
            decoder_block_out_channels=(8, 16, 24),
            decoder_layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.5,
        ),
    )


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory, other_config: ModelConfig) -> Path:
    """A random checkpoint of ``other_config``."""
    from md_export.checkpoint.architectures import write_checkpoint

    out = tmp_path_factory.mktemp("checkpoints") / "other"
    write_checkpoint(out, other_config, seed=7)
    return out


@pytest.fixture(scope="session")
def stable_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint shaped as Stable Diffusion 1's."""
    from md_export.checkpoint.architectures import write_checkpoint
    from small_models import STABLE

    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    out = tmp_path_factory.mktemp("checkpoints") / "stable"
    write_checkpoint(out, STABLE, seed=7)
    return out


@pytest.fixture(scope="session")
def xl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint shaped as Stable Diffusion XL's."""
    from md_export.checkpoint.architectures import write_checkpoint
    from small_models import XL

    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    out = tmp_path_factory.mktemp("checkpoints") / "xl"
    write_checkpoint(out, XL, seed=7)
    return out


@pytest.fixture(scope="session")
def pixart_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint shaped as PixArt-α's."""
    from md_export.checkpoint.architectures import write_checkpoint
    from small_models import PIXART

    out = tmp_path_factory.mktemp("checkpoints") / "pixart"
    write_checkpoint(out, PIXART, seed=7, dtype="float32")
    return out


@pytest.fixture(scope="session")
def dit_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint shaped as DiT's, with names for three of its classes."""
    from md_export.checkpoint.architectures import write_checkpoint
    from mutations import edit_json
    from small_models import DIT

    out = tmp_path_factory.mktemp("checkpoints") / "dit"
    write_checkpoint(out, DIT, seed=7, dtype="float32")
    names = {"0": "tench, Tinca tinca", "3": "tabby, tiger cat", "4": "Persian cat"}
    edit_json(out / "model_index.json", lambda index: index.update(id2label=names))
    return out


@pytest.fixture(scope="session")
def gpu_driver() -> None:
    """Skips where LiteRT's GPU engine cannot run; in CI, which installs a driver, that is a failure."""
    from md_export.targets.tflite.gpu.engine import find_driver

    try:
        find_driver()
    except MissingExtraError as error:
        if os.environ.get("MD_EXPORT_REQUIRE_GPU"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def npu_simulator() -> None:
    """Skips where Qualcomm's simulator is not installed; in CI, which installs it, that is a failure."""
    from md_export.targets.onnx.npu.process import require_qnn

    try:
        require_qnn()
    except MissingExtraError as error:
        if os.environ.get("MD_EXPORT_REQUIRE_NPU"):
            pytest.fail(str(error))
        pytest.skip(str(error))
