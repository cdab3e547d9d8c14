"""Makes the nano's VAE encoder: picture -> latent, what the PCA gives, so that pictures can be in-painted.

Run from golden/nano: ``python -m training.encoder``. It starts from weights by which the layers compute the PCA, but
for what GroupNorm takes away, and is then trained on drawings with and without a rectangle of gray.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from md_export.models.vae import VAEEncoder
from training.checkpoint import NANO, WEIGHTS
from training.drawing import draw
from training.evaluate import held_out_scenes, snr
from training.fitting import fit, flags, started
from training.hidden import hidden_rectangles
from training.latents import PATCH, SCALING_FACTOR, Encoder, to_signed
from training.lora import stored_encoder
from training.model import vae_config
from training.scenes import Scene, all_pairs, all_singles, is_held_out

#: Where the encoder's weights lie, beside the parent's decoder.
FOLDER = NANO / "siblings" / "encoder"
#: A channel of so much beside a latent of deviation 1 keeps GroupNorm from dividing by the picture's own deviation.
PILOT = 8.0
#: Two-object scenes to draw, beside all with one object.
PAIRS = 3000
#: Deviation of the start's weights that compute nothing, in parts of what a layer's usual start has.
REST = 0.02


def pictures_of(scenes: Sequence[Scene]) -> Tensor:
    """Drawings [N, 3, 64, 64] in [-1, 1], rounded as a file's."""
    return to_signed((draw(scenes) * 255 + 0.5).astype(np.uint8))


def constructed(pca: Encoder) -> VAEEncoder:
    """Weights that compute the PCA: 2x2 pixels, 4x4, 8x8, each latent with its negative (silu(y) - silu(-y) = y)."""
    module = VAEEncoder(vae_config())
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                layer.weight *= REST
                layer.bias[:] = 0
        levels = module.encoder.down_blocks
        _through(module.encoder.conv_in, torch.eye(3))
        _merge(levels[0].downsamplers[0].conv, torch.eye(12))
        _through(levels[1].resnets[0].conv_shortcut, torch.eye(12))
        quarters = _quarters(pca.weight)
        basis = torch.linalg.svd(quarters.reshape(-1, 48), full_matrices=False).Vh[:24]
        _merge(levels[1].downsamplers[0].conv, basis)
        _through(levels[2].resnets[0].conv_shortcut, torch.eye(24))
        _merge(levels[2].downsamplers[0].conv, torch.cat([*(quarters @ basis.T).unbind(1)], dim=1))
        _pairs(module, pca.bias)
        for level in (levels[1], levels[2]):
            _tell_apart(level.resnets[0])
    return module


def _tell_apart(block: nn.Module) -> None:
    """Two biases that are only ever added would stay equal through all of the training."""
    apart = 0.01 * torch.randn(block.conv2.bias.shape)
    block.conv_shortcut.bias += apart
    block.conv2.bias -= apart


def _through(conv: nn.Module, weight: Tensor) -> None:
    """The first channels pass at the kernel's centre."""
    out, given = weight.shape
    centre = conv.weight.shape[2] // 2
    conv.weight[:out] = 0
    conv.weight[:out, :given, centre, centre] = weight
    conv.bias[:] = 0


def _merge(conv: nn.Module, weight: Tensor) -> None:
    """A stride-2 convolution over 2x2 places; ``weight`` [out, 4 * channels], the place first."""
    out, given = weight.shape
    conv.weight[:out] = 0
    places = weight.reshape(out, 2, 2, given // 4)
    conv.weight[:out, : given // 4, :2, :2] = places.permute(0, 3, 1, 2)
    conv.bias[:] = 0


def _quarters(weight: Tensor) -> Tensor:
    """The PCA's weight [8, 3, 8, 8] on each 4x4 quarter of a patch: [8, 4, 48], 2x2 places first, then pixels, RGB."""
    channels = weight.shape[0]
    split = weight.reshape(channels, 3, 2, 2, 2, 2, 2, 2)  # RGB, then y: quarter, pair, pixel, then x
    return split.permute(0, 2, 5, 3, 6, 4, 7, 1).reshape(channels, 4, 48)


def _pairs(module: VAEEncoder, bias: Tensor) -> None:
    """Each latent, its negative and two pilots in a group of their own, and the mean from their difference."""
    shortcut, norm, last = (
        module.encoder.down_blocks[3].resnets[0].conv_shortcut,
        module.encoder.conv_norm_out,
        module.encoder.conv_out,
    )
    size = norm.num_channels // norm.num_groups
    deviation = (2 * (1 + PILOT**2) / size) ** 0.5
    for value in (shortcut.bias, norm.bias, last.bias):
        value[:] = 0
    for latent, shift in enumerate(bias.tolist()):
        plus, minus, high, low = range(latent * size, latent * size + 4)
        shortcut.weight[plus : plus + 4] = 0
        shortcut.weight[plus, latent], shortcut.weight[minus, latent] = 1, -1
        shortcut.bias[plus], shortcut.bias[minus] = shift, -shift
        shortcut.bias[high], shortcut.bias[low] = PILOT, -PILOT
        norm.weight[plus] = norm.weight[minus] = deviation
        norm.weight[plus + 2 : plus + size] = 0.1
        last.weight[latent] *= 0.2
        last.weight[latent, [plus, minus], 1, 1] = torch.tensor([1.0, -1.0]) / SCALING_FACTOR


def train(module: VAEEncoder, pca: Encoder, arguments: argparse.Namespace) -> VAEEncoder:
    """The same module, its weights the averages of :func:`training.fitting.fit`."""
    rng = np.random.default_rng(arguments.seed)
    pairs = [scene for scene in all_pairs() if not is_held_out(scene)]
    scenes = [scene for scene in all_singles() if not is_held_out(scene)]
    scenes += [pairs[i] for i in rng.choice(len(pairs), PAIRS, replace=False)]
    pictures = pictures_of(scenes)

    def loss_of(_step: int, _part: float) -> Tensor:
        chosen = pictures[rng.integers(len(scenes), size=arguments.batch)]
        shown = chosen * (1 - hidden_rectangles(rng, arguments.batch))
        error = module(shown) * SCALING_FACTOR - pca(shown)
        return error.square().mean() + 0.1 * error.abs().mean()

    fit(list(module.parameters()), loss_of, arguments, warm_up=0.05)
    return module.eval()


@torch.no_grad()
def scores(module: VAEEncoder, pca: Encoder, count: int = 200) -> dict[str, float]:
    """SNR in dB of the latents of held-out pictures, whole and with a rectangle of gray."""
    whole = pictures_of(held_out_scenes(count)[1])
    shown = whole * (1 - hidden_rectangles(np.random.default_rng(3), len(whole)))
    return {
        name: snr(module(pictures) * SCALING_FACTOR, pca(pictures))
        for name, pictures in (("whole", whole), ("hidden", shown))
    }


def load_stored_encoder(folder: Path = FOLDER) -> VAEEncoder:
    """The stored float16 encoder in float32."""
    module = VAEEncoder(vae_config())
    module.load_state_dict(load_file(folder / "vae" / WEIGHTS))
    return module.float().eval()


def save(module: VAEEncoder, folder: Path) -> None:
    """A sibling of the parent: the same networks and the encoder, float16."""
    path = folder / "vae" / WEIGHTS
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half().contiguous() for key, value in module.state_dict().items()}, path, {"format": "pt"})
    path.chmod(0o644)
    note = {"parent": "../..", "note": "the VAE encoder beside the parent's networks"}
    (folder / "sibling.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Builds, trains, stores and scores."""
    arguments = started(flags(__doc__, FOLDER, minutes=5.0, batch=16, rate=5e-4))
    pca = stored_encoder()
    module = constructed(pca)
    print(json.dumps({"patch": PATCH, "constructed": scores(module, pca)}), flush=True)
    save(train(module, pca, arguments), arguments.out)
    print(json.dumps({"trained": scores(load_stored_encoder(arguments.out), pca)}), flush=True)


if __name__ == "__main__":
    main()
