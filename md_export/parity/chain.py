"""The chain from prompt to picture: each artifact is fed what those before it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from md_export.artifact import ArtifactEntry, Manifest
from md_export.parity.cases import each_call
from md_export.parity.golden import GoldenCase
from md_export.sampling import latent_from
from md_export.tensors import Array, Arrays

# Each feeds the next.
CHAIN: Final = ("text_encoder", "unet", "vae_decoder")


def chain_inputs(
    manifest: Manifest, entry: ArtifactEntry, cases: Sequence[GoldenCase], made: Mapping[str, list[Array]]
) -> list[Arrays]:
    """The golden inputs with what the artifacts before this one made, by component, in place of the golden values.

    None where the chain broke off. In many steps, the UNet's are what it starts from: see
    :func:`md_export.sampling.denoise`.
    """
    if entry.component == "text_encoder":
        return [case.inputs("text_encoder") for case in each_call("text_encoder", cases)]
    before = made.get(CHAIN[CHAIN.index(entry.component) - 1], [])
    if manifest.ddim is not None and entry.component == "unet":
        pairs = zip(cases, before[::2], before[1::2], strict=False)
        return [start_of(case.values.noise, [empty, text]) for case, empty, text in pairs]
    batches: list[Arrays] = []
    for case, value in zip(cases, before, strict=False):
        if entry.component == "unet":
            batches.append({**case.inputs("unet"), "encoder_hidden_states": value})
        else:
            batches.append({"latent": latent_of(manifest, case.values.noise, value)})
    return batches


def start_of(noise: Array, texts: Sequence[Array]) -> Arrays:
    """What many steps start from: noise ``[1, C, h, w]``, and ``[1, L, D]`` of the empty prompt and of the prompt."""
    return {"sample": noise, "encoder_hidden_states": np.concatenate(texts)}


def latent_of(manifest: Manifest, noise: Array, unet_output: Array) -> Array:
    """What the decoder takes; many steps, or an artifact whose graph ends in the latent, have computed it already."""
    folded = manifest.ddim is not None or manifest.entry_for("unet").outputs[0].name == "latent"
    return unet_output if folded else latent_from(noise, unet_output, manifest.one_step)
