"""The chain from prompt to picture: each artifact is fed what those before it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from md_export.errors import ArtifactError
from md_export.models.adapter import RESIDUAL
from md_export.models.sampling.denoising import start_of
from md_export.models.sampling.generate import latent_from, only_output
from md_export.models.sampling.inpainting import around_of, with_around
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.surface import each_call
from md_export.spec.artifact import ArtifactEntry, artifact_path
from md_export.spec.manifest import Manifest
from md_export.spec.names import CONTROLNET
from md_export.spec.tensors import Array, Arrays

# Each feeds the next.
CHAIN: Final = ("text_encoder", "unet", "vae_decoder")


def chain_inputs(
    manifest: Manifest, entry: ArtifactEntry, cases: Sequence[GoldenCase], made: Mapping[str, list[Array]]
) -> list[Arrays]:
    """The golden inputs with what the artifacts before this one ``made`` in place of the golden values.

    It is by component, and of what gives several outputs by output: see :func:`by_output`.
    None where the chain broke off. In many steps, the UNet's are what it starts from: see
    :func:`md_export.models.sampling.generate.denoise`.
    """
    if entry.component == CONTROLNET:
        return _of_controlnet(manifest, cases, made)
    if entry.component not in CHAIN[1:]:
        return [case.inputs(entry.component) for case in each_call(entry.component, cases)]
    before = made.get(CHAIN[CHAIN.index(entry.component) - 1], [])
    if entry.component == "vae_decoder":
        pairs = zip(cases, before, strict=False)
        return [{"latent": latent_of(manifest, case.values.noise, value)} for case, value in pairs]
    around = _around(manifest, cases, made)
    if manifest.ddim is not None:
        both = zip(cases, before[::2], before[1::2], around, strict=False)
        return [
            start_of(
                case.values.noise, np.concatenate([no, text]), beside, residuals, condition_in_steps(manifest, case)
            )
            for (case, no, text, beside), residuals in zip(both, _residuals(cases, made, manifest), strict=False)
        ]
    batches: list[Arrays] = []
    for case, value, beside, residuals in zip(cases, before, around, _residuals(cases, made, manifest), strict=False):
        sample = with_around(case.values.noise, beside)
        batches.append({**case.inputs("unet"), "sample": sample, "encoder_hidden_states": value, **residuals})
    return batches


def named(entry: ArtifactEntry, outputs: Arrays) -> Arrays:
    """Outputs under the manifest's names; a single one may have any.

    Raises:
        ArtifactError: of several there are others than in the manifest.
    """
    names = [spec.name for spec in entry.outputs]
    if len(names) == 1:
        return {names[0]: only_output(outputs)}
    if set(outputs) != set(names):
        raise ArtifactError(f"it gives {', '.join(outputs)}, not the manifest's {', '.join(names)}; export again")
    return outputs


def by_output(entry: ArtifactEntry, made: Sequence[Arrays]) -> dict[str, list[Array]]:
    """What an artifact made of some cases: by its component's name, of several outputs by each one's."""
    if len(entry.outputs) == 1:
        return {entry.component: [only_output(outputs) for outputs in made]}
    return {spec.name: [outputs[spec.name] for outputs in made] for spec in entry.outputs}


def condition_in_steps(manifest: Manifest, case: GoldenCase) -> Array | None:
    """What a ControlNet takes in each of many steps; None in one step, and for an adapter."""
    return case.values.condition if manifest.ddim is not None and _has_controlnet(manifest) else None


def control_path(out: Path, manifest: Manifest) -> Path | None:
    """The ControlNet's artifact; None where the export has none."""
    return artifact_path(out, manifest.entry_for(CONTROLNET)) if _has_controlnet(manifest) else None


def _has_controlnet(manifest: Manifest) -> bool:
    return any(entry.component == CONTROLNET for entry in manifest.artifacts)


def _of_controlnet(manifest: Manifest, cases: Sequence[GoldenCase], made: Mapping[str, list[Array]]) -> list[Arrays]:
    """As for the UNet, whose inputs it takes; none in many steps, which it takes together with the UNet."""
    if manifest.ddim is not None:
        return []
    texts = zip(cases, made.get("text_encoder", []), strict=False)
    return [{**case.inputs(CONTROLNET), "encoder_hidden_states": text} for case, text in texts]


def _residuals(
    cases: Sequence[GoldenCase], made: Mapping[str, list[Array]], manifest: Manifest
) -> list[dict[str, Array]]:
    """What is added in each case: the artifact's where the export has one, else the golden values."""
    if manifest.ddim is not None and _has_controlnet(manifest):
        return [{} for _ in cases]
    names = [f"{RESIDUAL}{level}" for level in range(len(cases[0].values.residuals))]
    if not names or names[0] not in made:
        return [case.residuals() for case in cases]
    return [dict(zip(names, values, strict=True)) for values in zip(*(made[name] for name in names), strict=True)]


def _around(manifest: Manifest, cases: Sequence[GoldenCase], made: Mapping[str, list[Array]]) -> Sequence[Array | None]:
    """What a UNet that in-paints takes beside the noise, by the encoder's artifact where the export has one."""
    golden = [case.values.around for case in cases]
    if "vae_encoder" not in made:
        return golden
    scale = manifest.one_step.scaling_factor
    return [
        None if around is None else around_of(around[:, :1], latent, scale)
        for around, latent in zip(golden, made["vae_encoder"], strict=False)
    ]


def latent_of(manifest: Manifest, noise: Array, unet_output: Array) -> Array:
    """What the decoder takes; many steps, or an artifact whose graph ends in the latent, have computed it already."""
    folded = manifest.ddim is not None or manifest.entry_for("unet").outputs[0].name == "latent"
    return unet_output if folded else latent_from(noise, unet_output, manifest.one_step)
