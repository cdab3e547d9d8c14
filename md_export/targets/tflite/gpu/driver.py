"""Find the Vulkan driver on which LiteRT's GPU engine can run here, and load Vulkan for it.

SwiftShader, a Vulkan driver in software, comes with Chromium. Mesa's llvmpipe of Debian 12 lacks a feature
that the engine needs.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export.errors import MissingExtraError

# The Vulkan loader's own variables, the newer one first; each may list several files.
VARIABLES: Final = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
MANIFEST: Final = "vk_swiftshader_icd.json"
DEBIAN: Final = Path("/usr/lib/chromium")
LOADER: Final = "libvulkan.so.1"


@dataclass(frozen=True)
class Driver:
    """A driver's JSON manifest, and the variable that names it already, if one does."""

    manifest: Path
    variable: str | None


def cache_folder() -> Path:
    """Where ``make gpu-driver`` puts the driver."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "md-export" / "gpu-driver"


def find_driver() -> Driver:
    """The driver that the environment names, else the one of ``make gpu-driver``, else Chromium's of Debian.

    Raises:
        MissingExtraError: there is none; the message says what to install.
    """
    for variable in VARIABLES:
        if os.environ.get(variable):
            manifest = Path(os.environ[variable].split(os.pathsep)[0])
            if not manifest.is_file():
                raise MissingExtraError(f"{variable} names {manifest}, which does not exist; correct it or unset it")
            return Driver(manifest, variable)
    for folder in (cache_folder(), DEBIAN):
        if (folder / MANIFEST).is_file():
            return Driver(folder / MANIFEST, None)
    raise MissingExtraError(
        "LiteRT's GPU engine needs a Vulkan driver, and none was found: run `make gpu-driver`, install Debian's "
        f"package chromium-common, or set {VARIABLES[0]} to the JSON file of a driver"
    )


def load_driver(driver: Driver) -> None:
    """Make this process use ``driver``; to be called before the engine is created.

    Raises:
        MissingExtraError: no Vulkan loader lies beside the driver or in the system.
    """
    beside = driver.manifest.with_name(LOADER)
    try:
        # The engine opens the loader by name, and gets the one that is open already.
        ctypes.CDLL(str(beside) if beside.is_file() else LOADER)
    except OSError as error:
        raise MissingExtraError(f"the Vulkan loader cannot be loaded ({error}); install libvulkan1") from error
    if driver.variable is None:
        # The older of the two, which every loader knows; the loader reads it when the engine starts.
        os.environ[VARIABLES[1]] = str(driver.manifest)
