"""The chain from prompt to picture: each artifact is fed what those before it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from md_export.artifact import ArtifactEntry, Manifest
from md_export.parity.golden import GoldenCase
from md_export.sampling import latent_from
from md_export.tensors import Array, Arrays

# Each feeds the next.
CHAIN: Final = ("text_encoder", "unet", "vae_decoder")


def chain_inputs(
    manifest: Manifest, entry: ArtifactEntry, cases: Sequence[GoldenCase], made: Mapping[str, list[Array]]
) -> list[Arrays]:
    """The golden inputs with what the artifacts before this one made, by component, in place of the golden values.

    None where the chain broke off.
    """
    if entry.component == "text_encoder":
        return [case.inputs("text_encoder") for case in cases]
    before = made.get(CHAIN[CHAIN.index(entry.component) - 1], [])
    batches: list[Arrays] = []
    for case, value in zip(cases, before, strict=False):
        if entry.component == "unet":
            batches.append({**case.inputs("unet"), "encoder_hidden_states": value})
        else:
            batches.append({"latent": latent_of(manifest, case.values.noise, value)})
    return batches


def latent_of(manifest: Manifest, noise: Array, unet_output: Array) -> Array:
    """What the decoder takes; an artifact whose graph ends in the latent has computed it already."""
    folded = manifest.entry_for("unet").outputs[0].name == "latent"
    return unet_output if folded else latent_from(noise, unet_output, manifest.one_step)
