"""Model families, one file each: what their components are built of and how a checkpoint is recognized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from md_export.errors import UsageError
from md_export.models.config import ModelConfig
from md_export.models.families.mobile_diffusion import MOBILE_DIFFUSION
from md_export.models.families.stable_diffusion import STABLE_DIFFUSION
from md_export.models.graph import Component, Family

FAMILIES: Final = (MOBILE_DIFFUSION, STABLE_DIFFUSION)
# For golden cases and exports, which do not name their family: all families so far have the same wiring.
WIRING: Final = MOBILE_DIFFUSION

COMPONENTS: Final[Mapping[str, Component]] = {component.name: component for component in WIRING.required}


def component_of(config: ModelConfig, name: str) -> Component:
    """Return the row of a checkpoint's component; raises :class:`UsageError` for a name that its family lacks."""
    family = family_of(config)
    if name not in family.rows:
        known = ", ".join(row.name for row in family.required)
        raise UsageError(f"unknown component {name!r}; use one of {known}")
    return family.rows[name]


def family_of(config: ModelConfig) -> Family:
    """Return the family of a checkpoint, by its UNet."""
    (family,) = (family for family in FAMILIES if isinstance(config.unet, family.form.unet))
    return family


def family_by_class(name: str) -> Family:
    """Return the family of a checkpoint by the class that ``unet/config.json`` names; MobileDiffusion for any other."""
    return next((family for family in FAMILIES if family.form.unet_class[1] == name), MOBILE_DIFFUSION)
