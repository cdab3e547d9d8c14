"""Tensors of small Stable Diffusions under the names of its authors' own code, and OpenCLIP's."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from md_export.checkpoint.single_file_parts import TEXT, UNET, VAE

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str, with_attention: tuple[bool, ...], layers: int = 1) -> str:
    """``with_attention``: which up blocks have some."""
    for own, theirs in _TOP.items():
        if name.startswith(f"{own}."):
            given = theirs + name.removeprefix(own)
            return UNET + (_resnet(given) if "resnets" in own else given)
    found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    assert found is not None
    side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    first = block * (layers + 1) + (side == "down")
    if kind == "downsamplers":
        return f"{UNET}input_blocks.{first + layers}.0.op{rest.removeprefix('conv')}"
    if kind == "upsamplers":
        return f"{UNET}output_blocks.{first + layers}.{1 + with_attention[block]}.{rest}"
    place = f"{'input' if side == 'down' else 'output'}_blocks.{first + layer}.{int(kind == 'attentions')}"
    return UNET + (_resnet(f"{place}.{rest}") if kind == "resnets" else f"{place}.{rest}")


def _resnet(name: str) -> str:
    parts = name.rsplit(".", 2)
    return ".".join([*parts[:-2], _RESNET.get(parts[-2], parts[-2]), parts[-1]])


def vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    pattern = r"mid_block\.attentions\.0\.(group_norm|to_q|to_k|to_v|to_out\.0)\."
    return VAE + re.sub(pattern, lambda m: f"mid.attn_1.{_ATTENTION[m[1]]}.", name)


def text_name(name: str) -> str:
    return f"{TEXT}text_model.{name}"


def renamed(tensors: dict[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """With linears of the VAE's attention as the 1×1 convolutions that they were."""
    made = {rename(name): tensor for name, tensor in tensors.items()}
    one = re.compile(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$")
    return {name: tensor[:, :, None, None] if one.search(name) else tensor for name, tensor in made.items()}


_OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip(tensors: dict[str, Tensor], prefix: str, layers: int) -> dict[str, Tensor]:
    """CLIP's text model as OpenCLIP saves it: queries, keys and values joined, a last layer and a projection more."""
    width = tensors["final_layer_norm.weight"].shape[0]
    made = {
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "ln_final.weight": tensors["final_layer_norm.weight"],
        "ln_final.bias": tensors["final_layer_norm.bias"],
        "text_projection": torch.ones(width, width),
        "logit_scale": torch.tensor(4.6),
    }
    for layer in range(layers):
        own, theirs = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            joined = [tensors[f"{own}self_attn.{one}_proj.{kind}"] for one in "qkv"]
            made[f"{theirs}attn.in_proj_{kind}"] = torch.cat(joined)
            for mine, their in _OPEN_CLIP.items():
                made[f"{theirs}{their}.{kind}"] = tensors[f"{own}{mine}.{kind}"]
    last = {name: torch.full_like(tensor, 9.0) for name, tensor in made.items() if "resblocks.0." in name}
    made |= {name.replace("resblocks.0.", f"resblocks.{layers}."): tensor for name, tensor in last.items()}
    return {prefix + name: tensor for name, tensor in made.items()}
