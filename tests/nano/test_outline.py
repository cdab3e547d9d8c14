"""The style of the LoRA that ships: the reader tells both styles apart, and held-out captions show what was trained."""

from __future__ import annotations

import numpy as np
import pytest

from md_export.checkpoint.derived import adapted
from md_export.engine.generate import pictures_of_checkpoint
from md_export.spec.shipped_files import nano_checkpoint
from training.drawing import draw
from training.outline import Seen, draw_outlines, read, shares
from training.scenes import all_pairs, all_singles, caption, is_held_out, single

LORA = nano_checkpoint() / "loras" / "outline.safetensors"
SCENES = [*all_singles()][::61] + [*all_pairs()][::1400]
HELD_OUT = [scene for scene in all_singles() if is_held_out(scene)][::15]
HELD_OUT += [scene for scene in all_pairs() if is_held_out(scene)][::700]


def test_drawings_are_read_right() -> None:
    rng = np.random.default_rng(0)
    for pictures, outlined in ((draw(SCENES), 0.0), (draw_outlines(SCENES), 1.0)):
        rough = (pictures + rng.normal(0, 0.02, pictures.shape)).clip(0, 1).astype(np.float32)
        assert shares(rough, SCENES) == {"outlined": outlined, "shape": 1.0, "colour": 1.0}


def test_another_shape_and_colour_are_seen() -> None:
    wanted, drawn = single("circle", "red", "large", "left", "sky"), single("star", "blue", "large", "left", "sky")
    assert read(draw_outlines([drawn])[0], wanted) == [Seen("outlined", "star", "blue")]


@pytest.mark.parametrize("loras", [(), (str(LORA),)], ids=["without", "with"])
def test_the_checkpoint_draws_filled_and_the_lora_outlines(loras: tuple[str, ...]) -> None:
    with adapted(nano_checkpoint(), loras) as folder:
        pictures = pictures_of_checkpoint(folder, [(caption(scene), 7) for scene in HELD_OUT])
    found = shares(np.stack(pictures), HELD_OUT)
    assert found["outlined"] >= 0.75 if loras else found["outlined"] == 0.0
    assert min(found["shape"], found["colour"]) >= 0.9
