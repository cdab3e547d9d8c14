"""The styles of the LoRAs that ship: readers tell them apart, and held-out captions show what was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from md_export.checkpoint import build_on_meta, open_checkpoint
from md_export.checkpoint.derived import adapted
from md_export.checkpoint.lora import changes_of, open_lora
from md_export.checkpoint.weight_change import WeightChange
from md_export.engine.generate import pictures_of_checkpoint
from md_export.models.families import COMPONENTS
from md_export.spec.loras import parse_lora
from md_export.spec.shipped_files import nano_checkpoint
from training.drawing import draw
from training.lora import no_changes, save
from training.outline import OUTLINED, draw_outlines, read_outlines
from training.reading import Array, Draw, Seen
from training.scenes import all_pairs, all_singles, caption, is_held_out, single
from training.stripes import LEAST_AMPLITUDE, amplitude, draw_stripes
from training.styles import STYLES, Style

SCENES = [*all_singles()][::61] + [*all_pairs()][::1400]
HELD_OUT = [scene for scene in all_singles() if is_held_out(scene)][::15]
HELD_OUT += [scene for scene in all_pairs() if is_held_out(scene)][::700]
#: Least share of HELD_OUT in each style by its LoRA, and least share whose shape or colour is right.
LEAST = {"outline": (0.75, 0.9), "hues": (0.7, 0.7), "stripes": (0.95, 0.95)}


def file_of(name: str) -> Path:
    return nano_checkpoint() / "loras" / f"{name}.safetensors"


def rough(draw_styled: Draw) -> Array:
    pictures = draw_styled(SCENES)
    noise = np.random.default_rng(0).normal(0, 0.02, pictures.shape)
    return (pictures + noise).clip(0, 1).astype(np.float32)


def share_of(style: Style, pictures: Array) -> float:
    """The share that is in the style."""
    return next(iter(style.shares(pictures, SCENES).values()))


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_drawings_are_read_right(style: Style) -> None:
    assert set(style.shares(rough(style.draw), SCENES).values()) == {1.0}


@pytest.mark.parametrize("name", STYLES)
def test_other_drawings_are_not_taken_for_a_style(name: str) -> None:
    assert share_of(STYLES[name], rough(draw)) == 0.0
    others = {other: share_of(STYLES[name], rough(style.draw)) for other, style in STYLES.items() if other != name}
    assert max(others.values()) <= 0.25, others


def test_another_shape_and_colour_are_seen() -> None:
    wanted, drawn = single("circle", "red", "large", "left", "sky"), single("star", "blue", "large", "left", "sky")
    assert read_outlines(draw_outlines([drawn])[0], wanted) == [Seen(OUTLINED, "star", "blue")]


@pytest.mark.parametrize("light", [0.8, 1.0])
def test_stripes_are_not_shading(light: float) -> None:
    scenes = [*all_singles()][::3]
    filled, striped = (
        [amplitude(light * picture, scene.items[0]) for picture, scene in zip(drawn, scenes, strict=True)]
        for drawn in (draw(scenes), draw_stripes(scenes))
    )
    assert max(filled) < 0.9 * LEAST_AMPLITUDE and min(striped) > 1.2 * LEAST_AMPLITUDE


@pytest.mark.parametrize("name", ["", *STYLES])
def test_a_lora_draws_its_own_style(name: str) -> None:
    """The checkpoint alone, the empty name, draws in none of them."""
    with adapted(nano_checkpoint(), (str(file_of(name)),) if name else ()) as folder:
        pictures = np.stack(pictures_of_checkpoint(folder, [(caption(scene), 7) for scene in HELD_OUT]))
    for other, style in STYLES.items():
        share, *right = style.shares(pictures, HELD_OUT).values()
        if other == name:
            assert share >= LEAST[name][0] and min(right) >= LEAST[name][1]
        else:
            assert share <= (0.25 if name else 0.0), other


@pytest.fixture(scope="module")
def unet(nano: Path) -> nn.Module:
    return build_on_meta(COMPONENTS["unet"], open_checkpoint(nano).config)


def read(path: Path, unet: nn.Module) -> dict[str, WeightChange]:
    return {change.name: change for change in changes_of(open_lora(parse_lora(str(path))), "unet", unet)}


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_what_is_saved_is_read(unet: nn.Module, tmp_path: Path, style: Style) -> None:
    made = no_changes(unet, style)
    for change in made:
        nn.init.normal_(change.parts["up"])
    save(made, style, tmp_path / "style.safetensors")
    found = read(tmp_path / "style.safetensors", unet)
    assert list(found) == sorted(change.name for change in made)
    for change in made:
        stored = found[change.name]
        assert (stored.scale, stored.form, stored.shape) == (change.scale, change.form, change.shape)
        assert all(torch.equal(stored.parts[part], value.half()) for part, value in change.parts.items())


@pytest.mark.parametrize("name", STYLES)
def test_files_have_the_form_of_their_styles(unet: nn.Module, name: str) -> None:
    made, found = no_changes(unet, STYLES[name]), read(file_of(name), unet)
    assert {one.name: (one.scale, one.parts["down"].shape) for one in made} == {
        one.name: (one.scale, one.parts["down"].shape) for one in found.values()
    }
    assert file_of(name).read_bytes().count(b"lora_unet_") == (3 * len(made) if STYLES[name].names == "kohya" else 0)
