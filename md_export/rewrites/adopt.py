"""Stable Diffusion's modules as ours: layers of diffusers and transformers → our layers with the same parameters.

    Transformer2DModel, BasicTransformerBlock, Attention, GEGLU  →  TransformerStack, TransformerBlock, Attention, …
    Attention with a norm and a residual (AutoencoderKL)         →  SpatialAttention
    ResnetBlock2D, Upsample2D                                    →  ResnetBlock, Upsample
    CLIPTextModel                                                →  TextEncoder

Rewrites match our types, so they need no second version. UNet2DConditionModel and AutoencoderKL keep their class and
their code around these layers. The keys of the state dict stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from md_export.errors import RewriteError
from md_export.models.layers import Attention, Gelu, GluProjection, ResnetBlock, Softmax, Upsample
from md_export.models.text_encoder import MASKED, TextEncoder
from md_export.models.unet import TransformerBlock, TransformerStack
from md_export.models.vae import SpatialAttention
from md_export.rewrites.tokens_as_channels import as_linear

TypeName = tuple[str, str]

UNET: Final[TypeName] = ("diffusers.models.unets.unet_2d_condition", "UNet2DConditionModel")
CONTROLNET_MODEL: Final[TypeName] = ("diffusers.models.controlnets.controlnet", "ControlNetModel")
TIMESTEPS: Final[TypeName] = ("diffusers.models.embeddings", "Timesteps")
TIMESTEP_EMBEDDING: Final[TypeName] = ("diffusers.models.embeddings", "TimestepEmbedding")


def type_name(layer: nn.Module) -> TypeName:
    """Return module and name of the layer's class; a subclass has another name."""
    return type(layer).__module__, type(layer).__qualname__


@dataclass(frozen=True)
class Adoption:
    """Replacement of another library's layer by one of ours.

    Attributes:
        theirs: module and name of the layer's class.
        ours: class that replaces it.
        must_be: conditions under which ``ours`` computes the same: for each (dotted) attribute a value, a type or a set
            of values. A missing attribute counts as None.
        prepare: sets attributes that ``ours`` needs and the other layer lacks.
        takes: parameters of the other ``forward`` that ``ours`` has, in order. Empty: only our layers call it.
        ignores: other parameters, which do not change the result of ``ours``.
        answer: converts our result to the type that the caller expects.
    """

    theirs: TypeName
    ours: type[nn.Module]
    must_be: Mapping[str, object] = field(default_factory=dict)
    prepare: Callable[[Any], None] | None = None
    takes: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    answer: Callable[[Tensor], object] | None = None

    def obstacles(self, layer: nn.Module) -> tuple[str, ...]:
        """Return the attributes of ``layer`` that ``ours`` does not support, as ``name=value``."""
        found = ((name, _attribute(layer, name), wanted) for name, wanted in self.must_be.items())
        return tuple(f"{name}={value!r}" for name, value, wanted in found if not _is(value, wanted))

    def apply(self, layer: nn.Module, path: str) -> None:
        """Change ``layer`` in place; ``path`` names it in errors."""
        if self.prepare is not None:
            self.prepare(layer)
        layer.__class__ = self.ours
        if self.takes:
            layer.register_forward_pre_hook(partial(_translate, self, path), with_kwargs=True)
        if (answer := self.answer) is not None:
            layer.register_forward_hook(lambda _layer, _args, out: answer(out))


def _attribute(layer: Any, dotted: str) -> Any:
    value = layer
    for name in dotted.split("."):
        value = getattr(value, name, None)
    return value


def _is(value: object, wanted: object) -> bool:
    if isinstance(wanted, type):
        return isinstance(value, wanted)
    return value in wanted if isinstance(wanted, frozenset) else value == wanted


def _translate(
    adoption: Adoption, path: str, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return positional arguments for our layer from a call of the other library's layer.

    Raises:
        RewriteError: the call has an argument that the rewritten layer does not support, such as a mask.
    """
    takes = adoption.takes
    more = {f"argument {index}": value for index, value in enumerate(args) if index >= len(takes)}
    rest = {name: value for name, value in (more | kwargs).items() if name not in takes + adoption.ignores}
    unserved = [name for name, value in rest.items() if value is not None]
    if unserved:
        raise RewriteError(f"{path} was rewritten for export and does not support {', '.join(unserved)}; leave it out")
    given = dict(zip(takes, args, strict=False)) | kwargs
    return tuple(given[name] for name in takes if name in given), {}


# A layer that computes something else than ours (an adapter's attention, another norm) is an error: if it were skipped,
# the model would be half rewritten and fail far from the cause.
# Attention processors that compute the same function in different ways.
_SAME_ATTENTION: Final = frozenset(
    {"AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor"}
)
_PLAIN_ATTENTION: Final = {
    "processor.__class__.__name__": _SAME_ATTENTION,
    "to_q": nn.Linear,
    "to_k": nn.Linear,
    "to_v": nn.Linear,
    "rescale_output_factor": 1.0,
    "fused_projections": False,
    **dict.fromkeys(("spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")),
}


def _as_stack(layer: Any) -> None:
    for name in ("proj_in", "proj_out"):
        projection = getattr(layer, name)
        if isinstance(projection, nn.Conv2d):  # Stable Diffusion 1
            setattr(layer, name, as_linear(projection))


def _as_attention(layer: Any) -> None:
    layer.head_dim = layer.inner_dim // layer.heads
    layer.shares_kv = False
    layer.weights = Softmax()


def _as_glu(layer: Any) -> None:
    layer.act = Gelu()


def _as_text_encoder(layer: Any) -> None:
    layer.length = int(layer.config.max_position_embeddings)
    layer.text_projection = None
    # The only implementation that adds the given mask to the scores without converting it.
    layer.config._attn_implementation = "eager"
    mask = torch.full((layer.length, layer.length), MASKED).triu(1)[None, None]
    layer.register_buffer("mask", mask, persistent=False)


# Several entries may have the same type; the one with the fewest unsupported attributes is chosen.
_ADOPTIONS: Final = (
    Adoption(
        ("diffusers.models.transformers.transformer_2d", "Transformer2DModel"),
        TransformerStack,
        {"is_input_continuous": True, "norm": nn.GroupNorm},
        _as_stack,
        takes=("hidden_states", "encoder_hidden_states"),
        ignores=("return_dict",),
        answer=lambda out: (out,),
    ),
    Adoption(
        ("diffusers.models.attention", "BasicTransformerBlock"),
        TransformerBlock,
        {
            "norm_type": "layer_norm",
            "only_cross_attention": False,
            "double_self_attention": False,
            "attn2": nn.Module,
            "pos_embed": None,
            "fuser": None,
        },
    ),
    Adoption(
        ("diffusers.models.attention_processor", "Attention"),
        Attention,
        {**_PLAIN_ATTENTION, "residual_connection": False, "group_norm": None},
        _as_attention,
    ),
    Adoption(
        ("diffusers.models.attention_processor", "Attention"),
        SpatialAttention,
        {**_PLAIN_ATTENTION, "residual_connection": True, "group_norm": nn.GroupNorm, "heads": 1},
        takes=("hidden_states",),
        ignores=("temb",),
    ),
    Adoption(("diffusers.models.activations", "GEGLU"), GluProjection, prepare=_as_glu),
    Adoption(
        ("diffusers.models.resnet", "ResnetBlock2D"),
        ResnetBlock,
        {
            "time_embedding_norm": frozenset({"default", "group"}),  # "group" in models without a time embedding
            "skip_time_act": False,
            "nonlinearity": nn.SiLU,
            "output_scale_factor": 1.0,
            "upsample": None,
            "downsample": None,
        },
        takes=("input_tensor", "temb"),
    ),
    Adoption(
        ("diffusers.models.upsampling", "Upsample2D"),
        Upsample,
        {
            "use_conv": True,
            "use_conv_transpose": False,
            "interpolate": True,
            "norm": None,
            "conv.kernel_size": (3, 3),
            "conv.padding": (1, 1),
        },
        takes=("hidden_states",),
    ),
    Adoption(
        ("transformers.models.clip.modeling_clip", "CLIPTextModel"),
        TextEncoder,
        {"embeddings": nn.Module, "final_layer_norm": nn.LayerNorm},
        _as_text_encoder,
        takes=("input_ids",),
    ),
)
_FOREIGN: Final = frozenset(adoption.theirs for adoption in _ADOPTIONS)


def adopt(module: nn.Module) -> int:
    """Replace layers of ``module`` by ours, in place; return the number of replaced layers.

    Raises:
        RewriteError: a layer computes something that ours do not, or has a LoRA that is not fused.
    """
    found = [(path, layer) for path, layer in module.named_modules() if type_name(layer) in _FOREIGN]
    if found:
        _refuse_adapters(module)
    chosen = [_choose(path, layer) for path, layer in found]  # before any change: an error leaves the module unchanged
    for (path, layer), adoption in zip(found, chosen, strict=True):
        adoption.apply(layer, path or type_name(layer)[1])
    return len(found)


def _refuse_adapters(module: nn.Module) -> None:
    for path, layer in module.named_modules():
        if type_name(layer)[0].startswith("peft.") or getattr(layer, "lora_layer", None) is not None:
            raise RewriteError(
                f"{path} has a LoRA that is not fused; call fuse_lora() and unload_lora_weights() before rewriting"
            )


def _choose(path: str, layer: nn.Module) -> Adoption:
    choices = [adoption for adoption in _ADOPTIONS if adoption.theirs == type_name(layer)]
    best = min(choices, key=lambda choice: len(choice.obstacles(layer)))
    if obstacles := best.obstacles(layer):
        library, name = type_name(layer)[0].split(".")[0], type_name(layer)[1]
        raise RewriteError(
            f"{path or 'the module'}, {library}' {name}, has {', '.join(obstacles)}, which no rewrite supports. "
            "Export this component without rewrites"
        )
    return best
