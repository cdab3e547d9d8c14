"""The step from the UNet's output to the decoder's input → inside the UNet.

    out_sample  →  latent = (a·sample + b·out_sample) / scaling_factor

For one step only; ``a`` and ``b`` are computed from the checkpoint's schedule. For a model that predicts the noise, b
is -14.6 with Stable Diffusion's schedule, and it multiplies the rounding error of a half-precision output.
"""

# Principle: saves one call and one buffer between two models. If a·sample and b·out nearly cancel, x0 has 20·log10|b|
# dB less SNR than the output; a float16 Core ML program computes this sum in float32 (its precision.py).

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from md_export.models.unet import MDUNet
from md_export.rewrites.adopt import UNET, type_name
from md_export.spec.sampler import OneStep


class X0Combine(nn.Module):
    """(sample, out) → (a·sample + b·out) / scaling_factor, all ``[B, C, H, W]``; a module, so that targets find it."""

    def __init__(self, one_step: OneStep) -> None:
        super().__init__()
        self.of_sample = one_step.a / one_step.b
        self.of_sum = one_step.b / one_step.scaling_factor

    def forward(self, sample: Tensor, out: Tensor) -> Tensor:
        """Combine ``out`` with the noise, which is in the first channels of ``sample`` (in-painting has more)."""
        if sample.shape[1] != out.shape[1]:
            sample = sample[:, : out.shape[1]]
        # Not a·sample + b·out: coremltools would multiply b into the last convolution's weight and lose its name.
        return (sample * self.of_sample + out) * self.of_sum


def fold_x0(module: nn.Module, one_step: OneStep) -> int:
    """Rewrite in place; return 1. Must come after fold_timestep in a recipe with both."""
    if not (isinstance(module, MDUNet) or type_name(module) == UNET) or count_latent(module):
        return 0
    module.x0 = X0Combine(one_step)
    module.register_forward_hook(_latent, with_kwargs=True)
    return 1


def count_latent(module: nn.Module) -> int:
    """Return 1 if the output is already the latent, else 0."""
    return int(isinstance(getattr(module, "x0", None), X0Combine))


def _latent(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    latent: Tensor = unet.x0(args[0] if args else kwargs["sample"], out)
    return latent
