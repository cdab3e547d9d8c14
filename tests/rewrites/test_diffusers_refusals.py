"""What the rewrites of diffusers' modules refuse: layers and calls that would compute something else."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import md_export
from md_export.errors import RewriteError
from md_export.parity.metrics import compare
from md_export.rewrites import Consent, apply_rewrites
from rewrites.diffusers_models import STEP, TEXT, fresh_subject, model, rewrite, trained, unet
from rewrites.forms import EXACT_DB
from rewrites.test_diffusers_exactness import UNET


def with_lora(net: Any) -> None:
    net.down_blocks[1].attentions[0].proj_in.lora_layer = nn.Identity()


def with_peft(net: Any) -> None:
    net.conv_in.__class__ = type("Linear", (type(net.conv_in),), {"__module__": "peft.tuners.lora.layer"})


def with_adapter(net: Any) -> None:
    net.mid_block.attentions[0].transformer_blocks[0].attn2.processor = type("IPAdapterAttnProcessor", (), {})()


def with_other_norm(net: Any) -> None:
    net.mid_block.attentions[0].transformer_blocks[0].norm_type = "ada_norm"


def with_scaled_residual(net: Any) -> None:
    net.mid_block.resnets[0].output_scale_factor = 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_lora, r"down_blocks\.1\.attentions\.0\.proj_in has a LoRA .* fuse_lora"),
        (with_peft, "conv_in has a LoRA"),
        (with_adapter, r"attn2, diffusers' Attention, has processor\S+='IPAdapterAttnProcessor'"),
        (with_other_norm, r"BasicTransformerBlock, has norm_type='ada_norm'"),
        (with_scaled_residual, r"mid_block\.resnets\.0, diffusers' ResnetBlock2D, has output_scale_factor=2\.0"),
    ],
)
def test_what_computes_something_else_is_refused(change: Callable[[Any], None], message: str) -> None:
    case = fresh_subject("sd1")
    change(model(case))
    before = {path: type(layer) for path, layer in case.module.named_modules()}
    with pytest.raises(RewriteError, match=message):
        rewrite(case, "fold_attention_scale")
    assert {path: type(layer) for path, layer in case.module.named_modules()} == before


def test_several_heads_with_a_norm_are_refused() -> None:
    case = fresh_subject("vae")
    model(case).decoder.mid_block.attentions[0].heads = 2
    with pytest.raises(RewriteError, match="heads=2"):
        rewrite(case, "tokens_to_maps")


def test_a_mask_is_refused() -> None:
    case = fresh_subject("sd1")
    rewrite(case, "tokens_to_maps")
    sample, timestep, text = (torch.from_numpy(array) for array in case.arrays.values())
    with pytest.raises(RewriteError, match=r"attentions\.0 was rewritten .* does not support encoder_attention_mask"):
        model(case)(sample, timestep, text, encoder_attention_mask=torch.ones(1, 77))


def test_a_size_that_does_not_halve_is_refused() -> None:
    """The UNet then asks its upsampler for a size; ours doubles."""
    case = fresh_subject("sd1")
    rewrite(case, "upsample_to_four_convs")
    with pytest.raises(RewriteError, match=r"upsamplers\.0 was rewritten"):
        model(case)(torch.randn(1, 4, 9, 12), torch.tensor([999.0]), torch.randn(1, 77, TEXT))


def test_a_time_embedding_that_depends_on_the_text_is_folded_in_part() -> None:
    """Stable Diffusion XL: the timestep goes into the bias of what is added to its embedding."""
    xl: dict[str, Any] = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    net = trained(unet(linear=True, projection_class_embeddings_input_dim=TEXT + 6 * 8, **xl))
    given = (torch.randn(1, 4, 8, 8), torch.tensor([999.0]), torch.randn(1, 77, TEXT))
    more = {"text_embeds": torch.randn(1, TEXT), "time_ids": torch.full((1, 6), 512.0)}
    before = net(*given, added_cond_kwargs=more, return_dict=False)[0].numpy()
    apply_rewrites(UNET[:-1], "unet", net, STEP, Consent())
    assert compare(net(*given, added_cond_kwargs=more, return_dict=False)[0].numpy(), before).snr_db >= EXACT_DB
    (record,) = apply_rewrites(("fold_timestep",), "unet", net, STEP, Consent())
    assert record.fired == 1
    folded = net(given[0], given[2], added_cond_kwargs=more, return_dict=False)[0].numpy()
    assert compare(folded, before).snr_db >= EXACT_DB
    other = net(given[0], given[2], added_cond_kwargs=more | {"time_ids": torch.zeros(1, 6)}, return_dict=False)[0]
    assert compare(other.numpy(), before).snr_db < EXACT_DB


def test_diffusers_is_never_imported() -> None:
    """Types are matched by name: who rewrites a module has its library loaded already."""
    for path in Path(md_export.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "diffusers"], path
