"""Pieces of the components, with one of everything in them, that litert_torch converts in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor, nn

from md_export.models.config import ModelConfig
from md_export.models.layers import ResnetBlock, TimestepEmbedding, Upsample
from md_export.models.text_encoder import TextEncoder
from md_export.models.unet import TransformerStack
from md_export.models.vae import SpatialAttention
from md_export.parity.metrics import compare, first_fault
from md_export.rewrites import REWRITES
from md_export.spec.recipe import QuantScheme
from md_export.spec.sampler import OneStep
from md_export.spec.tensors import Array, Arrays, TensorSpec
from md_export.targets import TARGETS
from md_export.targets.contract import Lowered, LoweringJob
from rewrites.test_folds import SMALL

PIECES: Final = ("unet", "text", "vae")
SCHEMES: Final = {
    "fp32": QuantScheme("float32", "float32"),
    "fp16": QuantScheme("float16", "float32"),
    "int8": QuantScheme("int8", "int8_dynamic"),
    "int8_weights": QuantScheme("int8", "float32"),
    "int8_static": QuantScheme("int8", "int8_static"),
}

target = TARGETS["tflite"].open()


class UNetPiece(nn.Module):
    """One of everything, timestep included."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(8, 32, 3, padding=1)
        self.time_embedding = TimestepEmbedding(16, 24)
        self.resnet = ResnetBlock(32, 48, 4, 1e-5, 24)
        self.stack = TransformerStack(SMALL, 48, 1, self_attention=True)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        x = self.resnet(self.conv_in(sample), self.time_embedding(timestep))
        out: Tensor = self.stack(x, text)
        return out


class VAEPiece(nn.Module):
    """Norm, attention, upsampler."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(8, 24, 3, padding=1)
        self.attention = SpatialAttention(24, 4, 1e-6)
        self.norm = nn.GroupNorm(4, 24)
        self.up = Upsample(24)

    def forward(self, latent: Tensor) -> Tensor:
        out: Tensor = self.up(self.norm(self.attention(self.conv_in(latent))))
        return out


@dataclass(frozen=True)
class Piece:
    """A float file, its inputs, and what torch made of them before the rewrites."""

    job: LoweringJob
    lowered: Lowered
    arrays: Arrays
    expected: Array

    def save(self, precision: str, path: Path) -> Path:
        self.lowered.quantize(replace(self.job, scheme=SCHEMES[precision])).save(path)
        return path

    def snr_db(self, found: Array) -> float:
        assert first_fault(found, self.expected) is None
        return compare(found, self.expected).snr_db


Pieces = Callable[[str], Piece]


def module_and_inputs(name: str, config: ModelConfig) -> tuple[nn.Module, dict[str, Tensor]]:
    if name == "text":
        return TextEncoder(config.text_encoder), {"input_ids": torch.randint(0, 600, (1, 77), dtype=torch.int32)}
    if name == "vae":
        return VAEPiece(), {"latent": torch.randn(1, 8, 12, 16)}
    given = {"sample": torch.randn(1, 8, 12, 16), "timestep": torch.full((1,), 999.0), "text": torch.randn(1, 77, 24)}
    return UNetPiece(), given


def lower_piece(
    name: str, forms: tuple[str, ...], fresh: bool, config: ModelConfig, step: OneStep, workdir: Path
) -> Piece:
    torch.manual_seed(0)
    module, given = module_and_inputs(name, config)
    module.eval().requires_grad_(False)
    for norm in () if fresh else module.modules():
        if isinstance(norm, (nn.LayerNorm, nn.GroupNorm)):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    expected = module(*given.values()).numpy()
    for form in forms:
        REWRITES[form].apply(module, step)
    arrays = {key: value.numpy() for key, value in given.items()}
    inputs = tuple(TensorSpec(key, array.shape, array.dtype.name) for key, array in arrays.items())
    output = TensorSpec("out", expected.shape, "float32")
    job = LoweringJob("piece", module, inputs, (output,), arrays, SCHEMES["fp32"], (arrays,), workdir)
    return Piece(job, target.lower(job), arrays, expected)


def pieces(
    forms: tuple[str, ...], config: ModelConfig, step: OneStep, tmp_path_factory: pytest.TempPathFactory
) -> Pieces:
    """Return ``piece(name)``, which rewrites and lowers each piece once; the UNet's norms stay fresh."""
    made: dict[str, Piece] = {}

    def get(name: str) -> Piece:
        if name not in made:
            folder = tmp_path_factory.mktemp("pieces")
            made[name] = lower_piece(name, forms, name == "unet", config, step, folder)
        return made[name]

    return get
