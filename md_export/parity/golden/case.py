"""One golden case as components see it: what each takes and gives, under the names that its artifacts use."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from md_export.errors import GoldenError
from md_export.models.adapter import RESIDUAL
from md_export.models.sampling.generate import Generation
from md_export.models.sampling.inpainting import with_around
from md_export.spec.names import ADAPTER, CONTROLNET
from md_export.spec.tensors import Array, Arrays


@dataclass(frozen=True)
class GoldenCase:
    """One prompt and seed with all that was computed from them.

    ``call``: whose inputs and outputs it shows where a component was called more than once; ``label`` names it.
    """

    name: str
    prompt: str
    seed: int
    values: Generation
    call: int = 0
    title: str = ""

    @property
    def label(self) -> str:
        """The case and the call in words."""
        return self.title or self.name

    def calls(self, component: str) -> tuple[GoldenCase, ...]:
        """The case once for each call of the component: of many steps, some of the UNet's and both texts' are held."""
        values = self.values
        if values.sample is None or component not in ("text_encoder", "unet", CONTROLNET):
            return (self,)
        titles: tuple[str, ...] = (f"{self.name} without a prompt", self.name)
        if component != "text_encoder":
            titles = tuple(f"{self.name} at timestep {timestep:g}" for timestep in values.timestep.tolist())
        return tuple(dataclasses.replace(self, call=call, title=title) for call, title in enumerate(titles))

    def inputs(self, component: str) -> Arrays:
        """The component's golden inputs under the names that its artifacts use.

        Raises:
            GoldenError: the VAE encoder's, of a case without.
        """
        values = self.values
        if component == "vae_encoder":
            return {"image": self._encoded(values.encoder_image)}
        if component == ADAPTER:
            return {"condition": self._condition}
        if component == CONTROLNET:
            shared = {"timestep": self._row(values.timestep), "encoder_hidden_states": values.encoder_hidden_states}
            return {"sample": self._sample(), **shared, "condition": self._condition}
        return {
            "text_encoder": {"input_ids": self._row(values.input_ids)},
            "unet": {
                "sample": with_around(self._sample(), values.around),
                "timestep": self._row(values.timestep),
                "encoder_hidden_states": values.encoder_hidden_states,
                **self.residuals(height=1 if values.sample is None else 2),
            },
            "vae_decoder": {"latent": values.latent},
        }[component]

    def output(self, name: str) -> Array:
        """The golden value of a component's output, by the name that its artifacts give it; KeyError for another."""
        values = self.values
        if name == "latent_mean":
            return self._encoded(values.encoder_latent)
        if name.startswith(RESIDUAL):
            return self.residuals()[name]
        return {
            "last_hidden_state": self._row(values.encoder_hidden_states),
            "out_sample": self._row(values.unet_output, 2),
            "latent": values.latent,
            "image": values.image,
        }[name]

    def _sample(self) -> Array:
        values = self.values
        return values.noise if values.sample is None else np.repeat(self._row(values.sample), 2, axis=0)

    def residuals(self, height: int = 1) -> dict[str, Array]:
        """What is added to the UNet's maps, by the names of its inputs; what an adapter gave, so many times."""
        values = self.values
        each = (
            self._row(value, 2) if values.sample is not None and len(value) > 1 else np.repeat(value, height, axis=0)
            for value in values.residuals
        )
        return {f"{RESIDUAL}{place}": value for place, value in enumerate(each)}

    @property
    def _condition(self) -> Array:
        how = "md-export golden CHECKPOINT -o DIR, of the checkpoint that has it"
        return self._held(self.values.condition, "an adapter or a ControlNet", how)

    def _encoded(self, array: Array | None) -> Array:
        return self._held(array, "the VAE encoder", "md-export golden CHECKPOINT --encoder -o DIR")

    def _held(self, array: Array | None, whose: str, how: str) -> Array:
        if array is None:
            raise GoldenError(f"the golden case {self.name} holds nothing of {whose}; make golden cases that do: {how}")
        return array

    def _row(self, array: Array, height: int = 1) -> Array:
        """What belongs to the call; in one step everything does."""
        return array if self.values.sample is None else array[height * self.call : height * (self.call + 1)]


_MOST_RESIDUALS: Final = 32
# Rank of each tensor of a golden case, batch included where it has one.
_RANKS: Final = {
    "input_ids": 2,
    "noise": 4,
    "timestep": 1,
    "encoder_hidden_states": 3,
    "unet_output": 4,
    "latent": 4,
    "image": 4,
    "picture": 3,
    "sample": 4,
    "encoder_image": 4,
    "encoder_latent": 4,
    "around": 4,
    "condition": 4,
    **{f"{RESIDUAL}{level}": 4 for level in range(_MOST_RESIDUALS)},
}


def values_from_bytes(content: bytes, path: Path) -> Generation:
    """Read a golden file's content; ``path`` stands in error messages. Values may be NaN or Inf.

    Raises:
        GoldenError: no safetensors file, or not the tensors of a golden case.
    """
    try:
        arrays = load(content)
        residuals = [arrays.pop(f"{RESIDUAL}{i}") for i in range(_MOST_RESIDUALS) if f"{RESIDUAL}{i}" in arrays]
        values = Generation(**arrays, residuals=tuple(residuals))
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise GoldenError(f"{path} does not hold the tensors of a golden case: {error}") from error
    for name, array in arrays_of(values).items():
        dtype = "int32" if name == "input_ids" else "float32"
        if (array.ndim, str(array.dtype)) != (_RANKS[name], dtype) or not array.size:
            raise GoldenError(
                f"{path} does not hold the tensors of a golden case: {name} is {array.dtype}{list(array.shape)}, "
                f"not {dtype} of rank {_RANKS[name]}; make the golden cases again"
            )
    return values


def check_finite(values: Generation, prompt: str) -> None:
    """Raise :class:`GoldenError` where a case holds NaN or Inf."""
    for name, array in arrays_of(values).items():
        if not np.isfinite(array).all():
            raise GoldenError(f"{name} of the golden case {prompt!r} holds NaN or Inf; the checkpoint itself is broken")


def arrays_of(values: Generation) -> dict[str, Array]:
    """All that was computed for a case, by name, as its file holds it."""
    found = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    found |= {f"{RESIDUAL}{i}": value for i, value in enumerate(found.pop("residuals"))}
    return {name: array for name, array in found.items() if array is not None}
