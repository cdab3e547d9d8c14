"""Names of Stable Diffusion's authors, against the tests' own table, which diffusers' conversion checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from md_export.checkpoint.original_names import original_names
from md_export.checkpoint.single_file_parts import UNET
from single_file import unet_name


@pytest.mark.seen("LoRA with SGM's and ComfyUI's block names", "mapped to diffusers' names")
def test_every_module_of_a_small_one(stable_checkpoint: Path) -> None:
    names = load_file(stable_checkpoint / "unet/diffusion_pytorch_model.safetensors")
    paths = {name.rpartition(".")[0] for name in names}
    wanted = {
        name.rpartition(".")[0]: unet_name(name, (True, False)).removeprefix(UNET).rpartition(".")[0] for name in names
    }
    assert original_names(paths) == wanted


# v1-inference.yaml's UNet: two layers for each of four levels, attention in all but the innermost.
STABLE_1 = [
    *(
        f"{side}_blocks.{level}.resnets.{n}"
        for side, most in (("down", 2), ("up", 3))
        for level in range(4)
        for n in range(most)
    ),
    *(f"down_blocks.{level}.attentions.{n}" for level in range(3) for n in range(2)),
    *(f"up_blocks.{level}.attentions.{n}" for level in range(1, 4) for n in range(3)),
    *(f"down_blocks.{level}.downsamplers.0" for level in range(3)),
    *(f"up_blocks.{level}.upsamplers.0" for level in range(3)),
]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("conv_in", "input_blocks.0.0"),
        (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
            "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        ),
        ("down_blocks.2.downsamplers.0.conv", "input_blocks.9.0.op"),
        ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
        ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
        ("up_blocks.3.attentions.2.proj_out", "output_blocks.11.1.proj_out"),
        ("up_blocks.3.resnets.0.conv_shortcut", "output_blocks.9.0.skip_connection"),
    ],
)
def test_modules_of_stable_diffusion_1(path: str, name: str) -> None:
    assert original_names([*STABLE_1, path])[path] == name


def test_levels_of_different_depth() -> None:
    """Blocks are numbered in one row, so a pruned level moves all that follow."""
    deeper = [
        "down_blocks.0.resnets.0",
        "down_blocks.0.downsamplers.0",
        *(f"down_blocks.1.resnets.{n}" for n in range(3)),
    ]
    assert list(original_names(deeper).values()) == [f"input_blocks.{n}.0{'.op' * (n == 2)}" for n in range(1, 6)]
