"""Names of components, spelled once for tables, recipes and the command line, which must load nothing to know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

ComponentName = Literal["text_encoder", "vae_encoder", "t2i_adapter", "controlnet", "unet", "vae_decoder"]
# In which they run, and stand in an export.
ORDER: Final[tuple[ComponentName, ...]] = get_args(ComponentName)
# Those that a checkpoint may have, each with the one whose scheme, tolerance and costs are meant for it, too.
OPTIONAL_NAMES: Final[Mapping[str, str]] = {"vae_encoder": "vae_decoder", "t2i_adapter": "unet", "controlnet": "unet"}
# Those that every checkpoint has.
COMPONENT_NAMES: Final = tuple(name for name in ORDER if name not in OPTIONAL_NAMES)
