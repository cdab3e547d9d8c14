"""Named torch → torch substitutions, applied in the order of the recipe.

A rewrite that changes the function is refused unless the checkpoint declares that it was trained with it
(its config already uses the new form, or ``trained_substitutions`` in unet/config.json lists it) or the user
allows drift. A rewrite that fires zero times is an error, because the recipe then describes another model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from torch import nn

from md_export.errors import RewriteError
from md_export.models.tiny_autoencoder import TinyDecoder, TinyEncoder
from md_export.rewrites.adopt import CONTROLNET_MODEL, UNET, adopt, type_name
from md_export.rewrites.equalize import count_links, equalize, equalize_both
from md_export.rewrites.fold_attention_scale import count_unscaled, fold_attention_scale
from md_export.rewrites.fold_norm_affine import count_plain_norms, fold_norm_affine
from md_export.rewrites.fold_timestep import count_one_step, fold_timestep
from md_export.rewrites.fold_x0 import count_latent, fold_x0
from md_export.rewrites.gelu_to_swish import count_swish, gelu_to_swish
from md_export.rewrites.group_norm_to_instance_norm import InstanceGroupNorm, group_norm_to_instance_norm
from md_export.rewrites.linear_to_conv2d import count_conv2d, linear_to_conv2d
from md_export.rewrites.rank_4_attention import count_rank_4, rank_4_attention
from md_export.rewrites.softmax_to_relu import count_relu, softmax_to_relu
from md_export.rewrites.split_attention_heads import SplitHeadAttention, split_attention_heads
from md_export.rewrites.split_wide_conv2d import count_narrow, split_wide_conv2d
from md_export.rewrites.staged_group_norm import StagedGroupNorm, staged_group_norm
from md_export.rewrites.tabulate_timestep import count_tabled, tabulate_timestep
from md_export.rewrites.tokens_to_maps import count_maps, tokens_to_maps
from md_export.rewrites.upsample_by_repeating import count_repeating, upsample_by_repeating
from md_export.rewrites.upsample_to_four_convs import FourConvUpsample, upsample_to_four_convs
from md_export.rewrites.vector_linear_to_conv2d import count_vector_conv2d, vector_linear_to_conv2d
from md_export.spec.artifact import RewriteRecord
from md_export.spec.sampler import OneStep


@dataclass(frozen=True)
class Rewrite:
    """One substitution.

    Attributes:
        exact: the computed function stays the same up to float32 rounding.
        components: components in which it may fire.
        apply: rewrites a module in place, given the checkpoint's one-step constants; returns how often it fired.
        present: counts the places that already have the new form.
        drops: inputs that the rewritten module no longer has.
        output: new name of the module's output, if it changes.
        apply_both: as ``apply``, and rewrites a second module with the values chosen for the first; None if it chooses
            none.
    """

    name: str
    exact: bool
    components: tuple[str, ...]
    apply: Callable[[nn.Module, OneStep], int]
    present: Callable[[nn.Module], int]
    drops: tuple[str, ...] = ()
    output: str | None = None
    apply_both: Callable[[nn.Module, nn.Module], int] | None = None


def having(form: type[nn.Module]) -> Callable[[nn.Module], int]:
    """Return a function that counts the layers of class ``form`` in a module."""
    return lambda module: sum(isinstance(layer, form) for layer in module.modules())


_UNET: Final = ("unet", "controlnet")
_DENOISERS: Final = (*_UNET, "transformer")
_MAPS: Final = (*_UNET, "vae_decoder", "vae_encoder")
_ALL: Final = ("text_encoder", "text_encoder_2", "transformer", *_MAPS)
_UPSAMPLING: Final = ("unet", "vae_decoder")
REWRITES: Mapping[str, Rewrite] = {
    rewrite.name: rewrite
    for rewrite in (
        Rewrite("gelu_to_swish", exact=False, components=("unet",), apply=gelu_to_swish, present=count_swish),
        Rewrite("softmax_to_relu", exact=False, components=("unet",), apply=softmax_to_relu, present=count_relu),
        Rewrite("linear_to_conv2d", True, _ALL, linear_to_conv2d, count_conv2d),
        Rewrite("group_norm_to_instance_norm", True, _MAPS, group_norm_to_instance_norm, having(InstanceGroupNorm)),
        Rewrite("fold_attention_scale", True, _ALL, fold_attention_scale, count_unscaled),
        Rewrite("split_attention_heads", True, _DENOISERS, split_attention_heads, having(SplitHeadAttention)),
        Rewrite("fold_timestep", True, _UNET, fold_timestep, count_one_step, drops=("timestep",)),
        Rewrite("tokens_to_maps", True, _ALL, tokens_to_maps, count_maps),
        Rewrite("rank_4_attention", True, _ALL, rank_4_attention, count_rank_4),
        Rewrite("vector_linear_to_conv2d", True, _DENOISERS, vector_linear_to_conv2d, count_vector_conv2d),
        Rewrite("staged_group_norm", True, _MAPS, staged_group_norm, having(StagedGroupNorm)),
        Rewrite("fold_norm_affine", True, _ALL, fold_norm_affine, count_plain_norms),
        Rewrite("equalize", True, _ALL, equalize, count_links, apply_both=equalize_both),
        Rewrite("split_wide_conv2d", True, _MAPS, split_wide_conv2d, count_narrow),
        Rewrite("upsample_to_four_convs", True, _UPSAMPLING, upsample_to_four_convs, having(FourConvUpsample)),
        Rewrite("upsample_by_repeating", True, _UPSAMPLING, upsample_by_repeating, count_repeating),
        Rewrite("tabulate_timestep", True, _DENOISERS, tabulate_timestep, count_tabled),
        Rewrite("fold_x0", True, ("unet",), fold_x0, count_latent, output="latent"),
    )
}


def find_rewrite(name: str) -> Rewrite:
    """Return the rewrite with this name.

    Raises:
        RewriteError: no rewrite has this name.
    """
    if name in REWRITES:
        return REWRITES[name]
    near = get_close_matches(name, REWRITES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(REWRITES)}"
    raise RewriteError(f"unknown rewrite {name!r}; {hint}")


@dataclass(frozen=True)
class Consent:
    """Rewrites that may change the function: those that the checkpoint was ``trained`` with, or all."""

    trained: tuple[str, ...] = ()
    allow_drift: bool = False


def apply_rewrites(
    names: tuple[str, ...],
    component: str,
    module: nn.Module,
    one_step: OneStep,
    consent: Consent,
    other: nn.Module | None = None,
) -> tuple[RewriteRecord, ...]:
    """Apply the recipe's rewrites to one component, in place and in order.

    ``other``: the same component with other weights, to rewrite in the same way.

    Layers of diffusers and transformers are first replaced by ours (see :mod:`.adopt`).

    Raises:
        RewriteError: a rewrite is unknown, refused or fired zero times, or none of our layers can replace another
            library's layer.
    """
    rewrites = [find_rewrite(name) for name in names]
    concerned = [rewrite for rewrite in rewrites if component in rewrite.components]
    # Without rewrites too: the later stages support one form of Stable Diffusion's attention.
    if concerned or type_name(module) in (UNET, CONTROLNET_MODEL):
        for one in (module, other) if other is not None else (module,):
            adopt(one)
    return tuple(_apply(rewrite, component, module, one_step, consent, other) for rewrite in concerned)


def _apply(
    rewrite: Rewrite, component: str, module: nn.Module, one_step: OneStep, consent: Consent, other: nn.Module | None
) -> RewriteRecord:
    present = rewrite.present(module)
    if other is not None and rewrite.apply_both is not None:
        fired = rewrite.apply_both(module, other)
    else:
        fired = rewrite.apply(module, one_step)
        if other is not None:
            rewrite.apply(other, one_step)
    if fired == 0 and present:
        note = "nothing left to change" if rewrite.exact else "the checkpoint was trained so: already in place"
        return RewriteRecord(rewrite.name, 0, rewrite.exact, note)
    if fired == 0 and rewrite.exact and isinstance(module, TinyDecoder | TinyEncoder):
        # Convolutions only: a recipe for all models may have rewrites for tokens, which this component does not need.
        return RewriteRecord(rewrite.name, 0, True, "nothing to replace")
    if fired == 0:
        raise RewriteError(
            f"{rewrite.name} fires nowhere in {component}: it finds nothing to replace. Remove it from the recipe"
        )
    if rewrite.exact:
        return RewriteRecord(rewrite.name, fired, True)
    if rewrite.name in consent.trained:
        return RewriteRecord(rewrite.name, fired, False, "the checkpoint was trained with it")
    if consent.allow_drift:
        return RewriteRecord(rewrite.name, fired, False, "drift allowed by the user")
    raise RewriteError(
        f"{rewrite.name} changes what {component} computes and the checkpoint was not trained with it. "
        "Fine-tune the checkpoint with it, or pass --allow-drift to export anyway and measure the drift"
    )
