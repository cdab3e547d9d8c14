"""Small decoders, one of which is right everywhere; each other holds one thing in ``middle`` that is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export import __version__
from md_export.models.families.mobile_diffusion import MOBILE_DIFFUSION
from md_export.models.sampling.generate import Pipeline
from md_export.models.walk import Runners
from md_export.parity.golden.folder import GoldenSource, read_golden, write_golden
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry, Measured, bytes_of_artifact, sha256_of_artifact
from md_export.spec.manifest import SCHEMA, Manifest, write_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import OneStep
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Array, Arrays, TensorSpec
from md_export.targets import TARGETS
from md_export.targets.contract import LoweringJob

COMPONENT = "vae_decoder"
# 77 places in 12 channels, so that a decoder can hold the text encoder's attention.
LATENT = (1, 12, 7, 11)
STEP = OneStep(timestep=999, a=0.07, b=1.0, scaling_factor=1.0, prediction_type="epsilon")


class Smooth(nn.Module):
    """Fits."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Spread(nn.Module):
    """One map written out for six channels: BROADCAST_TO."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return torch.cat([flat[:, :6], torch.tanh(flat.mean(1, keepdim=True)).expand(1, 6, 77)], 1).reshape(x.shape)


class Folded(nn.Module):
    """Channels in pairs, exchanged: tensors of rank 5."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        pairs = x.reshape(batch, channels // 2, 2, height, width)
        return pairs.transpose(1, 2).reshape(x.shape)


class Wide(nn.Module):
    """A 3×3 convolution over 960 channels of a map that is not small."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.Conv2d(12, 960, 1)
        self.conv = nn.Conv2d(960, 128, 3, padding=1)
        self.shrink = nn.Conv2d(128, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        large = self.conv(self.grow(F.interpolate(x, scale_factor=4.0, mode="nearest")))
        return F.avg_pool2d(self.shrink(large), 4)


class Masked(nn.Module):
    """Causal attention of 12 heads with tensors of rank 4, as transformers' CLIP has it."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(12, 48) for _ in range(3))
        self.out = nn.Linear(48, 12)
        self.register_buffer("mask", torch.full((77, 77), -1e4).triu(1)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        query, key, value = (self.heads(layer(tokens)) for layer in (self.query, self.key, self.value))
        weights = (query @ key.transpose(2, 3) * 0.5 + self.mask).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(1, 77, 48)
        out: Tensor = self.out(mixed)
        return out.transpose(1, 2).reshape(x.shape)

    def heads(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(1, 77, 12, 4).transpose(1, 2)


class Squared(nn.Module):
    """A product of a tensor with itself at rank 4, which makes the engine abort."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.einsum("bchw,bckw->bchk", x, x).mean(-1, keepdim=True)


class Cornered(nn.Module):
    """A 2×2 convolution, padded below and on the right, of a map of 2×2: LiteRT's own CONV_2D forgets the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 2)

    def forward(self, x: Tensor) -> Tensor:
        small = x[:, :, :2, :2].permute(0, 2, 3, 1)
        padded = F.pad(small, (0, 0, 0, 1, 0, 1)).permute(0, 3, 1, 2)
        return x + F.pad(self.conv(padded), (0, x.shape[3] - 2, 0, x.shape[2] - 2))


class Curved(nn.Module):
    """Hyperbolic functions, of which Hexagon has neither."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.asinh(torch.sinh(x))


MIDDLES: Mapping[str, Callable[[], nn.Module]] = {
    "resident": Smooth,
    "broadcast": Spread,
    "rank5": Folded,
    "masked": Masked,
    "crash": Squared,
    "wide": Wide,
    "cornered": Cornered,
    "curved": Curved,
}


class Decoder(nn.Module):
    """Latent ``[1, 12, 7, 11]`` → image ``[1, 3, 7, 11]``."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(12, 12, 3, padding=1)
        self.middle = middle
        self.conv_out = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.conv_out(self.middle(self.conv_in(latent)))
        return image


class Answer:
    """A runner that computes its one output from its first input."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        self.name, self.function = name, function

    def run(self, inputs: Arrays) -> dict[str, Array]:
        first = torch.from_numpy(next(iter(inputs.values())))
        with torch.no_grad():
            return {self.name: self.function(first).numpy()}


def write_export(plant: str, out: Path, tokenizer: Path, target: str = "tflite", precision: str = "fp32") -> None:
    """An export folder with one component, the decoder that holds ``plant``, and one golden case by torch."""
    recipe = load_recipe(builtin_recipe(target, precision)).narrowed((COMPONENT,))
    torch.manual_seed(0)
    module = Decoder(MIDDLES[plant]()).eval()
    (out / GOLDEN_FOLDER).mkdir(parents=True)
    runners = {
        "text_encoder": Answer("last_hidden_state", lambda _: torch.zeros(1, 77, 1)),
        "unet": Answer("out_sample", torch.zeros_like),
        COMPONENT: Answer("image", module),
    }
    pipeline = Pipeline(
        MOBILE_DIFFUSION,
        MOBILE_DIFFUSION.required,
        Runners(runners),
        {"tokenizer": tokenizer},
        77,
        LATENT,
        1,
        inpaints=False,
        edits=False,
        one_step=STEP,
        steps=None,
    )
    source = GoldenSource(pipeline, "planted")
    write_golden(source, [("a", 0)], out / GOLDEN_FOLDER)
    write_manifest(_manifest(_convert(module, out, recipe), out, recipe), out)


def _convert(module: nn.Module, out: Path, recipe: Recipe) -> ArtifactEntry:
    (case,) = read_golden(out / GOLDEN_FOLDER).cases
    inputs, outputs = (
        TensorSpec("latent", LATENT, "float32"),
        TensorSpec("image", case.output(COMPONENT, "image").shape, "float32"),
    )
    scheme = recipe.schemes[COMPONENT]
    job = LoweringJob(COMPONENT, module, (inputs,), (outputs,), case.inputs(COMPONENT), scheme, (), out)
    known = TARGETS[recipe.target]
    target, path = known.open(), out / f"{COMPONENT}{known.suffix}"
    target.lower(job).quantize(job).save(path)
    return ArtifactEntry(
        component=COMPONENT,
        file=path.name,
        sha256=sha256_of_artifact(path),
        bytes=bytes_of_artifact(path),
        weights=scheme.weights,
        activations=scheme.activations,
        stored={},
        ops={},
        inputs=(inputs,),
        outputs=(outputs,),
        rewrites=(),
        measured=Measured(0.0, 0),
    )


def _manifest(entry: ArtifactEntry, out: Path, recipe: Recipe) -> Manifest:
    return Manifest(
        schema=SCHEMA,
        md_export=__version__,
        target=recipe.target,
        recipe=recipe,
        checkpoint_sha256="planted",
        golden_sha256=read_golden(out / GOLDEN_FOLDER).sha256,
        tools={},
        one_step=STEP,
        artifacts=(entry,),
    )
