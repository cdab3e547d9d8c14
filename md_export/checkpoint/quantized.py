"""Refuse weights that another tool quantized, with its name; exports and their checks need a float checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from md_export.checkpoint.files import shown
from md_export.errors import CheckpointError, ConfigError

GGUF: Final = b"GGUF"
# Field that diffusers and transformers write into a config.
QUANTIZATION: Final = "quantization_config"
# Part of a tensor's name, and how the weights are then stored; the first one found is reported.
_MARKS: Final = (
    ("scaled_fp8", "in float8 with scales beside them (ComfyUI)"),
    (".scale_weight", "in float8 with scales beside them (ComfyUI)"),
    (".comfy_quant", "as ComfyUI quantizes them"),
    (".quant_map", "as bitsandbytes quantizes them"),
    (".quant_state.", "as bitsandbytes quantizes them"),
    (".absmax", "as bitsandbytes quantizes them"),
    (".SCB", "as bitsandbytes quantizes them"),
    (".qweight", "as AWQ, GPTQ or SVDQuant quantize them"),
    (".weight_packed", "as compressed-tensors quantizes them"),
    (".weight_scale", "with scales beside them"),
)
_ADVICE: Final = "give the checkpoint from before quantization"


def refuse_quantized(names: Collection[str], where: str) -> None:
    """Raise :class:`CheckpointError` if the tensors' names are those of quantized weights; ``where``: the file."""
    for mark, stored in _MARKS:
        if (found := next((name for name in names if mark in name), None)) is not None:
            raise CheckpointError(f"{where} holds weights {stored}, such as {shown(found)}: {_ADVICE}")


def refuse_quantized_config(config: Mapping[str, object], where: str) -> None:
    """Raise :class:`ConfigError` for a config of quantized weights."""
    quantized = config.get(QUANTIZATION)
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        by = f" by {shown(str(method))}" if method else ""
        raise ConfigError(f"{where}: {QUANTIZATION} says that the weights are quantized{by}: {_ADVICE}")


def refuse_gguf(where: str) -> None:
    """Raise :class:`CheckpointError` for a GGUF file."""
    raise CheckpointError(f"{where} is a GGUF file, which is not supported: give the .safetensors that it is made of")
