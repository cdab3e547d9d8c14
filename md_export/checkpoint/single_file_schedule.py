"""Find out how the model in a single file was trained: epsilon or v, zero terminal SNR, size of the pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from md_export.checkpoint.files import CONFIG_LIMIT, read_text
from md_export.checkpoint.weights import is_weight
from md_export.errors import CheckpointError
from md_export.models.sampling.schedule import ScheduleConfig

_NAMES: Final = {
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "velocity"), "v_prediction"),
    **dict.fromkeys(("epsilon", "eps", "e"), "epsilon"),
}
# Line in the config that the authors publish beside a file.
_IN_YAML: Final = re.compile(r"^[ \t]*parameterization:[ \t]*[\"']?(\w{1,20})", re.MULTILINE)
# Training steps of Stable Diffusion 2's file for 512 pixels; diffusers recognizes it by this number.
_STEPS_OF_BASE: Final = 875_000
# This bias has a larger standard deviation in Stable Diffusion 2 models that predict v: ComfyUI's supported_models.py,
# SD20.model_type.
_MARKER: Final = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_MARKER_SPREAD: Final = 0.09
# The side of the latents must be a multiple of 8, because a UNet halves it three times.
_STEP: Final = 8
_LARGEST: Final = 256
_RESOLUTION: Final = re.compile(r"(\d{2,4})x(\d{2,4})")


@dataclass(frozen=True)
class Trained:
    """Training of the model; ``why`` names the source of this information."""

    prediction: str
    zero_snr: bool
    why: str

    @property
    def schedule(self) -> ScheduleConfig:
        """Scheduler's config; with zero terminal SNR, sampling starts at the last timestep (Lin et al. 2024)."""
        plain = ScheduleConfig(prediction_type=self.prediction)
        if not self.zero_snr:
            return plain
        return ScheduleConfig(prediction_type=self.prediction, rescale_betas_zero_snr=True, timestep_spacing="trailing")


def trained_for(
    file: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    predicts_both: bool,
    asked: str | None,
) -> Trained:
    """Return the training by a file's marker keys, metadata or config file; ``asked``: the prediction that a user gave.

    ``predicts_both``: some models of this kind predict epsilon and some v, so there is no default.

    Raises:
        CheckpointError: the prediction cannot be found, and ``predicts_both``.
    """
    found = _prediction(file, tensors, metadata, predicts_both) if asked is None else (asked, "--prediction")
    prediction, why = found
    return Trained(prediction, prediction == "v_prediction" and _is_zero(tensors, metadata), why)


def _prediction(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], predicts_both: bool
) -> tuple[str, str]:
    if "v_pred" in tensors:
        return "v_prediction", "its key v_pred"
    said = _NAMES.get(metadata.get("modelspec.prediction_type", "").lower())
    if said is not None:
        return said, "modelspec.prediction_type"
    if metadata.get("modelspec.architecture", "").partition("/")[0].endswith("-v"):
        return "v_prediction", "modelspec.architecture"
    if metadata.get("ss_v_parameterization", "").lower() == "true":
        return "v_prediction", "ss_v_parameterization"
    beside = next((path for path in map(file.with_suffix, (".yaml", ".yml")) if path.is_file()), None)
    match = _IN_YAML.search(read_text(beside, CONFIG_LIMIT)) if beside else None
    if match and match[1] in _NAMES and beside:
        return _NAMES[match[1]], beside.name
    if not predicts_both:
        return "epsilon", "no marker"
    if (step := metadata.get("global_step")) is not None:
        return ("epsilon" if step == str(_STEPS_OF_BASE) else "v_prediction"), f"global_step {step}"
    telling = tensors.get(_MARKER)
    if telling is None or not is_weight(telling) or telling.numel() < 2:
        raise CheckpointError(
            f"{file} does not say whether it predicts epsilon or v: give --prediction epsilon or v_prediction"
        )
    wide = float(telling.float().std(correction=0)) > _MARKER_SPREAD
    return ("v_prediction" if wide else "epsilon"), "the spread of its last norm"


def _is_zero(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    alphas = tensors.get("alphas_cumprod")
    ends = alphas is not None and is_weight(alphas) and alphas.ndim == 1 and alphas.numel() > 1
    return (
        "ztsnr" in tensors
        or metadata.get("ss_zero_terminal_snr", "").lower() == "true"
        or (ends and alphas is not None and abs(float(alphas[-1])) < 1e-6)
    )


def trained_size(metadata: Mapping[str, str], downscale: int) -> int | None:
    """Return the side of the latents by the size of square pictures in the metadata; None without one."""
    match = _RESOLUTION.fullmatch(metadata.get("modelspec.resolution", ""))
    side, rest = divmod(int(match[1]), downscale) if match and match[1] == match[2] else (0, 0)
    return side if not rest and not side % _STEP and 0 < side <= _LARGEST else None
