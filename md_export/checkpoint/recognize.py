"""Recognize the family of a checkpoint folder, supported or not, by the classes that its files name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from md_export.checkpoint.files import Layout, read_json, shown
from md_export.errors import CheckpointError
from md_export.models.families import FAMILIES
from md_export.models.families.mobile_diffusion import MOBILE_DIFFUSION
from md_export.models.graph import Family

INDEX: Final = "model_index.json"
# Prefixes of class names of other families in diffusers: pipelines in model_index.json, models in config.json. The
# longest matching prefix decides.
_NOT_READ: Final[Mapping[str, str]] = {
    "AnimateDiff": "AnimateDiff",
    "AuraFlow": "AuraFlow",
    "Bria": "Bria",
    "Chroma": "Chroma",
    "CogVideoX": "CogVideoX",
    "CogView": "CogView",
    "Cosmos": "Cosmos",
    "Flux": "FLUX.1",
    "Flux2": "FLUX.2",
    "HiDream": "HiDream",
    "HunyuanDiT": "HunyuanDiT",
    "HunyuanImage": "HunyuanImage",
    "HunyuanVideo": "HunyuanVideo",
    "IF": "DeepFloyd IF",
    "Kandinsky": "Kandinsky",
    "Kolors": "Kolors",
    "LTX": "LTX-Video",
    "Latte": "Latte",
    "Lumina": "Lumina",
    "Mochi": "Mochi",
    "OmniGen": "OmniGen",
    "PRX": "PRX",
    "QwenImage": "Qwen-Image",
    "SD3": "Stable Diffusion 3",
    "Sana": "SANA",
    "SnapFusion": "SnapFusion",
    "StableCascade": "Stable Cascade",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableVideoDiffusion": "Stable Video Diffusion",
    "UNet3D": "a model of videos",
    "UNetSpatioTemporal": "Stable Video Diffusion",
    "UnCLIP": "unCLIP",
    "Wan": "Wan",
    "Wuerstchen": "Würstchen",
    "ZImage": "Z-Image",
}
# Folders of denoisers in the families above.
_FOLDERS: Final = ("unet", "transformer", "decoder", "prior")


def family_in(layout: Layout) -> Family:
    """Return the family of a checkpoint folder; MobileDiffusion if its UNet has no known class.

    Raises:
        CheckpointError: the family, which the message names, is not supported.
    """
    index = layout.find(INDEX)
    values = {} if index is None else read_json(index)
    if values.get("requires_aesthetics_score") is True:
        raise CheckpointError(f"{layout.root} is the refiner of Stable Diffusion XL, which is not supported; {_read()}")
    named = [(INDEX, str(values.get("_class_name")))] if values else []
    configs = {folder: file for folder in _FOLDERS if (file := layout.find(f"{folder}/config.json"))}
    for folder, file in configs.items():
        config = read_json(file)
        fitting = [family for family in FAMILIES if folder == family.form.denoiser.FOLDER and _fits(family, config)]
        if fitting:
            return max(fitting, key=lambda family: len(family.form.marks))
        named.append((f"{folder}/config.json", str(config.get("_class_name"))))
    for where, name in named:
        if title := _title(name):
            named_in = f"({where}: {shown(name)})"
            raise CheckpointError(f"{layout.root} is {title} {named_in}, which is not supported; {_read()}")
    if "unet" not in configs and "transformer" in configs:
        where, name = named[-1]
        raise CheckpointError(f"{layout.root / where} has the class {shown(name)}, which is not supported; {_read()}")
    return MOBILE_DIFFUSION


def _fits(family: Family, config: Mapping[str, object]) -> bool:
    form = family.form
    _, name = form.classes[form.denoiser.FOLDER]
    classes = (name, form.earlier_class or name)
    return config.get("_class_name") in classes and all(config.get(field) == mark for field, mark in form.marks.items())


def _title(name: str) -> str:
    """Return the title of the unsupported family of a class; empty if it belongs to none."""
    prefixes = [prefix for prefix in _NOT_READ if name.startswith(prefix)]
    return _NOT_READ[max(prefixes, key=len)] if prefixes else ""


def _read() -> str:
    titles = [family.form.title for family in FAMILIES]
    return f"md-export reads {', '.join(titles[:-1])} and {titles[-1]}"
