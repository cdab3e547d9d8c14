"""``config.json`` → the config of one component, field by field."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from md_export.errors import ConfigError
from md_export.models.adapter import AdapterConfig
from md_export.models.controlnet import ControlNetConfig
from md_export.models.diffusers_controlnet import PLAIN_CONTROLNET, DiffusersControlNetConfig
from md_export.models.diffusers_unet import PLAIN, DiffusersUNetConfig
from md_export.models.sampling.schedule import OTHER_SAMPLERS, ScheduleConfig
from md_export.models.unet_config import MDUNetConfig
from md_export.models.vae import VAEConfig

ConfigT = TypeVar(
    "ConfigT",
    MDUNetConfig,
    DiffusersUNetConfig,
    VAEConfig,
    ScheduleConfig,
    AdapterConfig,
    ControlNetConfig,
    DiffusersControlNetConfig,
)

# diffusers' fields that say nothing our modules do not do anyway; any other value of those mapped
# to a value would change the function and is refused.
_IGNORED: Mapping[type, tuple[str, ...]] = {
    MDUNetConfig: (),
    DiffusersUNetConfig: ("dropout", "addition_embed_type_num_heads"),
    AdapterConfig: (),
    ControlNetConfig: (),
    DiffusersControlNetConfig: ("addition_embed_type_num_heads",),
    VAEConfig: ("down_block_types", "up_block_types", "sample_size", "force_upcast"),
    ScheduleConfig: OTHER_SAMPLERS,
}
_REQUIRED: Mapping[type, Mapping[str, Any]] = {
    MDUNetConfig: {},
    DiffusersUNetConfig: PLAIN,
    AdapterConfig: {"adapter_type": "full_adapter"},
    ControlNetConfig: {"controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": False},
    DiffusersControlNetConfig: PLAIN_CONTROLNET,
    VAEConfig: {"act_fn": "silu", "shift_factor": None, "latents_mean": None, "latents_std": None},
    ScheduleConfig: {
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "thresholding": False,
        "use_flow_sigmas": False,
    },
}


def parse_config(kind: type[ConfigT], folder: str, values: Mapping[str, Any]) -> ConfigT:
    """Turn ``folder/config.json`` into ``kind``; keys with a leading underscore are diffusers' own notes."""
    known = {field.name for field in dataclasses.fields(kind)}
    given = {k: v for k, v in values.items() if not k.startswith("_") and k not in _IGNORED[kind]}
    for key, required in _REQUIRED[kind].items():
        if given.pop(key, required) != required:
            raise ConfigError(f"{folder}/config.json: only {key}={required!r} is supported, not {values[key]!r}")
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(
            f"{folder}/config.json: unknown field {', '.join(unknown)}; known fields: {', '.join(sorted(known))}"
        )
    try:
        # Through JSON: strict mode then takes arrays for tuples and integers for floats, and nothing else.
        return TypeAdapter(kind).validate_json(json.dumps(given), strict=True)
    except ConfigError as error:
        raise ConfigError(f"{folder}/config.json: {error}") from error
    except (ValidationError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}/config.json: {_first_finding(error)}") from error


def _first_finding(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}, not {first['input']!r}"
