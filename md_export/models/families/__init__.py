"""Model families, one file each: what their components are built of and how a checkpoint is recognized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from md_export.errors import UsageError
from md_export.models.config import ModelConfig
from md_export.models.families.dit import DIT
from md_export.models.families.mobile_diffusion import MOBILE_DIFFUSION
from md_export.models.families.pixart import PIXART
from md_export.models.families.stable_diffusion import STABLE_DIFFUSION
from md_export.models.families.stable_diffusion_xl import STABLE_DIFFUSION_XL
from md_export.models.graph import Component, Family
from md_export.spec.names import FamilyName

FAMILIES: Final = (MOBILE_DIFFUSION, STABLE_DIFFUSION, STABLE_DIFFUSION_XL, PIXART, DIT)
# Rows of the components that every checkpoint of MobileDiffusion has.
COMPONENTS: Final[Mapping[str, Component]] = {row.name: row for row in MOBILE_DIFFUSION.required}
_BY_NAME: Final[Mapping[str, Family]] = {family.form.name: family for family in FAMILIES}


def family_named(name: FamilyName) -> Family:
    """Return the family that an export, a golden folder or a job names."""
    return _BY_NAME[name]


def component_of(config: ModelConfig, name: str) -> Component:
    """Return the row of a checkpoint's component; raises :class:`UsageError` for a name that its family lacks."""
    family = family_of(config)
    if name not in family.rows:
        known = ", ".join(row.name for row in family.required)
        raise UsageError(f"unknown component {name!r}; use one of {known}")
    return family.rows[name]


def family_of(config: ModelConfig) -> Family:
    """Return the family of a checkpoint, by the config of its denoiser."""
    (family,) = (family for family in FAMILIES if type(config.denoiser) is family.form.denoiser)
    return family
