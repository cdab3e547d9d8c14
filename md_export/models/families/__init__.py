"""Model families, one file each: the modules of their components, and how their checkpoints are recognized."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from md_export.errors import UsageError
from md_export.models.config import ModelConfig
from md_export.models.families.dit import DIT
from md_export.models.families.mobile_diffusion import MOBILE_DIFFUSION
from md_export.models.families.pixart import PIXART
from md_export.models.families.stable_diffusion import STABLE_DIFFUSION
from md_export.models.families.stable_diffusion_xl import STABLE_DIFFUSION_XL
from md_export.models.graph import Component, Family
from md_export.spec.names import FamilyName, whole_of

FAMILIES: Final = (MOBILE_DIFFUSION, STABLE_DIFFUSION, STABLE_DIFFUSION_XL, PIXART, DIT)
# Rows of the components that every checkpoint of MobileDiffusion has.
COMPONENTS: Final[Mapping[str, Component]] = {row.name: row for row in MOBILE_DIFFUSION.required}
_BY_NAME: Final[Mapping[str, Family]] = {family.form.name: family for family in FAMILIES}


@cache
def family_named(name: FamilyName) -> Family:
    """Return the family with this name, cut into the number of chunks in it: ``sd15:2``."""
    whole, _, chunks = name.partition(":")
    return _BY_NAME[whole].cut(int(chunks)) if chunks else _BY_NAME[whole]


def component_of(config: ModelConfig, name: str) -> Component:
    """Return the row of a checkpoint's component; for a chunk, that of its component.

    Raises:
        UsageError: the family does not have this component.
    """
    family, name = family_of(config), whole_of(name)
    if name not in family.rows:
        known = ", ".join(row.name for row in family.required)
        raise UsageError(f"unknown component {name!r}; use one of {known}")
    return family.rows[name]


def graph_of(config: ModelConfig) -> Family:
    """Return the family of a checkpoint, with its denoiser cut into the variant's number of chunks."""
    family, chunks = family_of(config), config.variant.chunks
    return family_named(f"{family.form.name}:{chunks}") if isinstance(chunks, int) else family


def family_of(config: ModelConfig) -> Family:
    """Return the family of a checkpoint by the config of its denoiser, without chunks."""
    (family,) = (family for family in FAMILIES if type(config.denoiser) is family.form.denoiser)
    return family
