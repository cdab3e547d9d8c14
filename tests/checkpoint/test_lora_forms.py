"""Forms of LoRA files against their published formulas, written here in numpy: values, strength, and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from md_export.checkpoint import Checkpoint, build_on_meta, open_checkpoint
from md_export.checkpoint.derived import adapted, write_adapted
from md_export.checkpoint.lora import changes_of, open_lora
from md_export.checkpoint.weight_change import WeightChange, fused
from md_export.cli import cli
from md_export.errors import CheckpointError, ParityError, UsageError
from md_export.models.families import COMPONENTS
from md_export.parity.lora_fusing import check_fused
from md_export.spec.loras import Lora, parse_lora

LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
CONV = "down_blocks.0.downsamplers.0.conv"
NORM = "down_blocks.0.resnets.0.norm1"
WITH_BIAS = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
R = 4
RANDOM = np.random.default_rng(5)
Array = NDArray[np.float64]
Arrays = Mapping[str, Array]


def noise(*shape: int) -> Array:
    """Values that float32 holds exactly, since files are written in it."""
    return (RANDOM.standard_normal(shape) * 0.3).astype(np.float32).astype(np.float64)


@pytest.fixture(scope="module")
def opened(nano: Path) -> Checkpoint:
    return open_checkpoint(nano)


@pytest.fixture(scope="module")
def unet(opened: Checkpoint) -> nn.Module:
    return opened.module("unet")


def key(path: str, part: str) -> str:
    return f"lora_unet_{path.replace('.', '_')}.{part}"


def changes(file: Path, module: nn.Module, scale: float | None = 1.0, config: Path | None = None) -> list[WeightChange]:
    return changes_of(open_lora(Lora(file, file.name, scale, config)), "unet", module)


def values(array: Array) -> Tensor:
    return torch.from_numpy(array).float()


def written(folder: Path, tensors: Mapping[str, Array | Tensor], name: str = "style.safetensors") -> Path:
    path = folder / name
    given = {k: values(v) if isinstance(v, np.ndarray) else v for k, v in tensors.items()}
    save_file({k: v.contiguous() for k, v in given.items()}, path)
    return path


# The formulas, each of the parts of one module and its old weight; alpha / rank is not in them.
def lora(p: Arrays) -> Array:
    """``up · down``; the kernel is in down."""
    up, down = p["lora_up.weight"], p["lora_down.weight"]
    return (up.reshape(len(up), -1) @ down.reshape(len(down), -1)).reshape(len(up), *down.shape[1:])


def locon_tucker(p: Arrays) -> Array:
    """LyCORIS' ``rebuild_tucker``: down and up are 1×1, the kernel is in the middle."""
    up, mid, down = p["lora_up.weight"][..., 0, 0], p["lora_mid.weight"], p["lora_down.weight"][..., 0, 0]
    made = np.zeros((up.shape[0], down.shape[1], *mid.shape[2:]))
    for a in range(mid.shape[0]):
        for b in range(mid.shape[1]):
            made += up[:, a, None, None, None] * down[b][None, :, None, None] * mid[a, b][None, None]
    return made


def loha(p: Arrays) -> Array:
    return (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])


def loha_tucker(p: Arrays) -> Array:
    def half(n: int) -> Array:
        core, outer, inner = p[f"hada_t{n}"], p[f"hada_w{n}_a"], p[f"hada_w{n}_b"]
        made: Array = np.zeros((outer.shape[1], inner.shape[1], *core.shape[2:]))
        for a, b in np.ndindex(R, R):
            made += outer[a][:, None, None, None] * inner[b][None, :, None, None] * core[a, b][None, None]
        return made

    return half(1) * half(2)


def lokr(p: Arrays) -> Array:
    """``make_kron``: each entry of the first matrix times the second."""
    first = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    if "lokr_t2" in p:
        second = np.einsum("ijkl,ip,jr->prkl", p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
    else:
        second = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"]
    rows = [np.concatenate([value * second for value in row], axis=1) for row in first]
    return np.concatenate(rows, axis=0)


def full(p: Arrays) -> Array:
    return p["diff"]


Formula = Callable[[Arrays], Array]
# Path, parts, formula, and alpha / rank for an alpha of 2.
FORMS: dict[str, tuple[str, dict[str, Array], Formula, float]] = {
    "LoRA": (LINEAR, {"lora_down.weight": noise(R, 80), "lora_up.weight": noise(80, R)}, lora, 2 / R),
    "LoCon": (
        CONV,
        {"lora_down.weight": noise(R, 48, 3, 3), "lora_up.weight": noise(48, R, 1, 1)},
        lora,
        2 / R,
    ),
    "LoCon with a core": (
        CONV,
        {
            "lora_down.weight": noise(R, 48, 1, 1),
            "lora_mid.weight": noise(R, R, 3, 3),
            "lora_up.weight": noise(48, R, 1, 1),
        },
        locon_tucker,
        2 / R,
    ),
    "LoHa": (
        LINEAR,
        {"hada_w1_a": noise(80, R), "hada_w1_b": noise(R, 80), "hada_w2_a": noise(80, R), "hada_w2_b": noise(R, 80)},
        loha,
        2 / R,
    ),
    "LoHa of a convolution": (
        CONV,
        {"hada_w1_a": noise(48, R), "hada_w1_b": noise(R, 432), "hada_w2_a": noise(48, R), "hada_w2_b": noise(R, 432)},
        loha,
        2 / R,
    ),
    "LoHa with cores": (
        CONV,
        {
            **{name: noise(R, 48) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
            **{name: noise(R, R, 3, 3) for name in ("hada_t1", "hada_t2")},
        },
        loha_tucker,
        2 / R,
    ),
    # Without a rank alpha says nothing: LyCORIS stores the one that makes the scale 1.
    "LoKr of whole matrices": (LINEAR, {"lokr_w1": noise(8, 8), "lokr_w2": noise(10, 10)}, lokr, 1.0),
    "LoKr with a second product": (
        LINEAR,
        {"lokr_w1": noise(8, 5), "lokr_w2_a": noise(10, R), "lokr_w2_b": noise(R, 16)},
        lokr,
        2 / R,
    ),
    "LoKr of products": (
        LINEAR,
        {"lokr_w1_a": noise(8, R), "lokr_w1_b": noise(R, 8), "lokr_w2_a": noise(10, R), "lokr_w2_b": noise(R, 10)},
        lokr,
        2 / R,
    ),
    "LoKr of a convolution": (CONV, {"lokr_w1": noise(6, 6), "lokr_w2": noise(8, 8, 3, 3)}, lokr, 1.0),
    "LoKr of a flat convolution": (
        CONV,
        {"lokr_w1": noise(6, 6), "lokr_w2_a": noise(8, R), "lokr_w2_b": noise(R, 72)},
        lokr,
        2 / R,
    ),
    "LoKr with a core": (
        CONV,
        {
            "lokr_w1": noise(6, 4),
            "lokr_w2_a": noise(R, 8),
            "lokr_w2_b": noise(R, 12),
            "lokr_t2": noise(R, R, 3, 3),
        },
        lokr,
        2 / R,
    ),
    "difference": (CONV, {"diff": noise(48, 48, 3, 3)}, full, 1.0),
}


def decomposed(weight: Array, magnitude: Array, over_inputs: bool) -> Array:
    """DoRA: each row (output) or column (input) of a weight at its own length."""
    flat = weight.reshape(*weight.shape[:2], -1)
    if over_inputs:
        columns = [flat[:, i] * magnitude.flatten()[i] / np.sqrt((flat[:, i] ** 2).sum()) for i in range(flat.shape[1])]
        return np.stack(columns, 1).reshape(weight.shape)
    rows = [row * magnitude.flatten()[i] / np.sqrt((row**2).sum()) for i, row in enumerate(flat)]
    return np.stack(rows).reshape(weight.shape)


def stored(unet: nn.Module, path: str) -> Array:
    return unet.get_parameter(f"{path}.weight").numpy().astype(np.float64)


@pytest.mark.seen("LoHa, LoKr, LoCon, DoRA, full differences", "fused by their own formulas")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dora", ["", "outputs", "inputs"])
def test_values(unet: nn.Module, tmp_path: Path, form: str, dora: str) -> None:
    """To float32's rounding, at the file's strength and at half of it; another alpha is noticed."""
    path, parts, formula, ratio = FORMS[form]
    old = stored(unet, path)
    tensors = {key(path, part): value for part, value in parts.items()} | {key(path, "alpha"): np.array(2.0)}
    changed = old + ratio * formula(parts).reshape(old.shape)
    if dora:
        ones = (1,) * (old.ndim - 2)
        lengths = 1 + abs(noise(old.shape[0], 1, *ones) if dora == "outputs" else noise(1, old.shape[1], *ones))
        tensors[key(path, "dora_scale")] = lengths
        changed = decomposed(changed, lengths, dora == "inputs")
    file = written(tmp_path, tensors)
    weights = {f"{path}.weight": values(old)}
    for scale in (1.0, 0.5):
        (change,) = changes(file, unet, scale)
        made = fused(weights, [change], "x")[f"{path}.weight"].numpy()
        assert np.allclose(made, old + scale * (changed - old), atol=2e-6), scale
        if ratio != 1.0:
            other = fused(weights, [replace(change, scale=1.1 * change.scale)], "x")[f"{path}.weight"].numpy()
            assert not np.allclose(other, old + scale * (changed - old), atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dora", [False, True])
def test_inside_the_weights_as_beside_them(unet: nn.Module, tmp_path: Path, form: str, dora: bool) -> None:
    """One layer by itself; a change that is too strong, and one that is left out, are noticed."""
    path, parts, _, _ = FORMS[form]
    tensors = {key(path, part): value for part, value in parts.items()}
    old = stored(unet, path)
    if dora:
        tensors[key(path, "dora_scale")] = 1 + abs(noise(1, old.shape[1], *(1,) * (old.ndim - 2)))
    found = changes(written(tmp_path, tensors), unet, 0.7)
    layer = unet.get_submodule(path)
    x = values(noise(1, 48, 8, 8) if old.ndim == 4 else noise(1, 5, 80))
    alone = nn.Module()
    alone.add_module("layer", layer)
    found = [replace(one, module="layer") for one in found]
    alone.forward = lambda x: layer(x)
    state = fused(dict(alone.state_dict()), found, "x")
    new = type(layer)(*_arguments(layer)).requires_grad_(False)
    new.load_state_dict({name.removeprefix("layer."): value for name, value in state.items()})
    check_fused(new, alone, found, (x,), "it", lambda _: None)
    for wrong in ([], [replace(found[0], factor=0.8)]):
        with pytest.raises(ParityError, match="fused into the weights"):
            check_fused(new, alone, wrong, (x,), "it", lambda _: None)


def _arguments(layer: nn.Module) -> tuple[object, ...]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features, layer.bias is not None


@pytest.mark.seen("LyCORIS norms and biases beside LoRA keys", "applied")
def test_norms_biases_and_dora_in_one_unet(opened: Checkpoint, tmp_path: Path) -> None:
    """LyCORIS' changes of norms and biases, DoRA in both directions, and a second file over the first."""
    first = {
        key(NORM, "w_norm"): noise(48),
        key(NORM, "b_norm"): noise(48),
        key(WITH_BIAS, "diff_b"): noise(80),
        key(WITH_BIAS, "lora_down.weight"): noise(R, 80),
        key(WITH_BIAS, "lora_up.weight"): noise(80, R),
        key(LINEAR, "lora_down.weight"): noise(R, 80),
        key(LINEAR, "lora_up.weight"): noise(80, R),
        key(LINEAR, "dora_scale"): 1 + abs(noise(80, 1)),
    }
    second = {
        key(CONV, "lora_down.weight"): noise(R, 48, 3, 3),
        key(CONV, "lora_up.weight"): noise(48, R, 1, 1),
        key(CONV, "dora_scale"): 1 + abs(noise(1, 48, 1, 1)),
        key(LINEAR, "lora_down.weight"): noise(R, 80),
        key(LINEAR, "lora_up.weight"): noise(80, R),
        key(LINEAR, "dora_scale"): 1 + abs(noise(1, 80)),
    }
    files = [written(tmp_path, first, "one.safetensors"), written(tmp_path, second, "two.safetensors")]
    with adapted(opened.root, (f"{files[0]}:0.5", f"{files[1]}")) as folder:
        styled = open_checkpoint(folder)
        base, added = styled.without_loras("unet")
        new = styled.module("unet")
    assert np.allclose(
        new.get_parameter(f"{NORM}.weight"), base.get_parameter(f"{NORM}.weight") + 0.5 * first[key(NORM, "w_norm")]
    )
    assert np.allclose(
        new.get_parameter(f"{NORM}.bias"), base.get_parameter(f"{NORM}.bias") + 0.5 * first[key(NORM, "b_norm")]
    )
    wanted = base.get_parameter(f"{WITH_BIAS}.bias") + 0.5 * first[key(WITH_BIAS, "diff_b")]
    assert np.allclose(new.get_parameter(f"{WITH_BIAS}.bias"), wanted)
    x = (values(noise(*opened.config.latent_shape)), torch.full((1,), 999.0))
    inputs = (*x, values(noise(*opened.config.text_shape)))
    check_fused(new, base, added, inputs, "it", lambda _: None)
    with pytest.raises(ParityError):
        check_fused(new, base, added[:-1], inputs, "it", lambda _: None)


@pytest.mark.seen("LoRA in bfloat16 or float8", "read")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_storage(unet: nn.Module, tmp_path: Path, dtype: torch.dtype) -> None:
    down, up = (values(noise(*shape)).to(dtype) for shape in ((R, 80), (80, R)))
    file = written(tmp_path, {key(LINEAR, "lora_down.weight"): down, key(LINEAR, "lora_up.weight"): up})
    (change,) = changes(file, unet)
    assert torch.equal(change.delta(1.0), (up.double() @ down.double()).float())
    rounded = values(noise(80, 80))
    assert not torch.equal(rounded.to(dtype).float(), rounded), "rounding would be seen"


# peft.
def peft_names(start: str, adapter: str, end: str = ".weight") -> tuple[str, str]:
    return f"{start}{LINEAR}.lora_A{adapter}{end}", f"{start}{LINEAR}.lora_B{adapter}{end}"


STARTS = ["base_model.model.", "base_model.model.unet.", "unet.base_model.model.", "unet.", ""]


@pytest.mark.seen("peft with any adapter name and nested prefixes", "read")
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("adapter", ["", ".default", ".my_style"])
def test_any_adapter_and_nesting(unet: nn.Module, tmp_path: Path, start: str, adapter: str) -> None:
    down, up = noise(R, 80), noise(80, R)
    (change,) = changes(written(tmp_path, dict(zip(peft_names(start, adapter), (down, up), strict=True))), unet)
    assert change.module == LINEAR and np.allclose(change.delta(1.0), up @ down, atol=1e-6)


@pytest.mark.parametrize(
    "start",
    ["base_model.model.text_model.", "text_encoder.base_model.model.text_model.", "base_model.model.text_encoder."],
)
def test_text_encoders(opened: Checkpoint, tmp_path: Path, start: str) -> None:
    path = "encoder.layers.1.self_attn.q_proj"
    names = [f"{start}{path}.lora_{half}.weight" for half in "AB"]
    file = written(tmp_path, dict(zip(names, (noise(2, 128), noise(128, 2)), strict=True)))
    module = build_on_meta(COMPONENTS["text_encoder"], opened.config)
    (change,) = changes_of(open_lora(Lora(file, "x", 1.0)), "text_encoder", module)
    assert change.module == path


@pytest.mark.seen("DoRA of peft", "fused by output, also of convolutions")
def test_dora_of_peft(unet: nn.Module, tmp_path: Path) -> None:
    """One length for each output, whatever the shape: ``[out]``, and ``[1, out, 1, 1]`` of a convolution."""
    linear, conv = 1 + abs(noise(80)), 1 + abs(noise(1, 48, 1, 1))
    parts = {LINEAR: (noise(R, 80), noise(80, R)), CONV: (noise(R, 48, 3, 3), noise(48, R, 1, 1))}
    tensors = {}
    for path, lengths, end in ((LINEAR, linear, ""), (CONV, conv, ".default.weight")):
        tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = parts[path]
        tensors[f"{path}.lora_magnitude_vector{end}"] = lengths
    for change in changes(written(tmp_path, tensors), unet):
        old = stored(unet, change.module)
        named = dict(zip(("lora_down.weight", "lora_up.weight"), parts[change.module], strict=True))
        wanted = decomposed(old + lora(named), linear if change.module == LINEAR else conv, over_inputs=False)
        assert np.allclose(change.applied(values(old)), wanted, atol=2e-6)
        other = decomposed(old + lora(named), linear if change.module == LINEAR else conv, over_inputs=True)
        assert not np.allclose(wanted, other, atol=1e-2)


@pytest.mark.seen("`adapter_config.json` of peft", "alpha and rank patterns are used")
@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8, "r": 4}, 2.0),
        ({"lora_alpha": 8, "r": 4, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "r": 16, "rank_pattern": {"attn2.to_q": 4}}, 2.0),
        ({"lora_alpha": 8, "r": 4, "alpha_pattern": {"attn2.to_q": 2}}, 0.5),
        ({"lora_alpha": 8, "r": 4, "alpha_pattern": {f"^{LINEAR}": 2}}, 0.5),
        ({"lora_alpha": 8, "r": 4, "alpha_pattern": {"^attn2.to_q": 2}}, 2.0),
        ({"lora_alpha": 8, "r": 4, "alpha_pattern": {r"down_blocks\.1.*to_q": 2}}, 0.5),
        ({"lora_alpha": 8, "r": 4, "alpha_pattern": {r"down_blocks\.1.*to_k": 2}}, 2.0),
        ({"lora_alpha": 8, "r": 4, "alpha_pattern": {r"attentions\.\d+\.transformer_blocks\.0\.attn2\.to_q": 2}}, 0.5),
        ({"lora_alpha": 8, "r": 4, "alpha_pattern": {"n2.to_q": 2}}, 2.0),
    ],
)
def test_config_of_peft(unet: nn.Module, tmp_path: Path, config: dict[str, object], scale: float) -> None:
    """Beside the file and in the folder that is given."""
    tensors = dict(zip(peft_names("base_model.model.", ""), (noise(R, 80), noise(80, R)), strict=True))
    file = written(tmp_path, tensors, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "use_dora": False, **config}))
    for given in (file, tmp_path):
        (change,) = changes_of(open_lora(parse_lora(str(given))), "unet", unet)
        assert change.scale == pytest.approx(scale)


def test_the_config_goes_where_the_file_goes(nano: Path, unet: nn.Module, tmp_path: Path) -> None:
    """A checkpoint with a copy of both, whose hash depends on both."""
    down, up = noise(R, 80), noise(80, R)
    tensors = dict(zip(peft_names("base_model.model.", ""), (down, up), strict=True))
    written(tmp_path, tensors, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 4}')
    out = tmp_path / "out"
    out.mkdir()
    write_adapted(out, nano, [parse_lora(str(tmp_path))])
    styled = open_checkpoint(out)
    wanted = stored(unet, LINEAR) + 2 * (up @ down)
    assert np.allclose(styled.module("unet").get_parameter(f"{LINEAR}.weight"), wanted, atol=1e-5)
    before = styled.source_sha256("unet")
    (out / "loras" / "0.json").write_text('{"lora_alpha": 4, "r": 4}')
    assert open_checkpoint(out).source_sha256("unet") != before


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"lora_alpha": 8, "r": 8}, "r is 8 for .*rank 4: the config is of another LoRA"),
        ({"r": 4}, "has no alpha"),
        ({"peft_type": "OFT"}, "says 'OFT', an adapter that is not supported"),
        ({"lora_alpha": 8, "alpha_pattern": {"(a+)+$": 1}}, "regular expression that is not supported"),
        ({"lora_alpha": 8, "alpha_pattern": {".*.*to_q": 1}}, "regular expression that is not supported"),
        ({"lora_alpha": 8, "alpha_pattern": {f".*{n}": 1 for n in range(101)}}, "has 101 entries"),
        ({"lora_alpha": 8, "use_dora": True}, "has no lora_magnitude_vector, and the config says use_dora"),
        ({"lora_alpha": "8"}, "no number"),
        ({"lora_alpha": 1e300}, "no number"),
    ],
)
def test_configs_that_are_wrong(unet: nn.Module, tmp_path: Path, config: dict[str, object], said: str) -> None:
    tensors = dict(zip(peft_names("base_model.model.", ""), (noise(R, 80), noise(80, R)), strict=True))
    written(tmp_path, tensors, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said):
        changes_of(open_lora(parse_lora(str(tmp_path))), "unet", unet)


def test_a_config_is_for_peft_alone(unet: nn.Module, tmp_path: Path) -> None:
    """A file with alphas that happens to lie beside one is read, and hashed, without it."""
    tensors = {key(LINEAR, "lora_down.weight"): noise(R, 80), key(LINEAR, "lora_up.weight"): noise(80, R)}
    file = written(tmp_path, tensors)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 99}')
    opened = open_lora(parse_lora(str(file)))
    assert opened.lora.config is None and changes_of(opened, "unet", unet)[0].scale == 1.0


def test_a_folder_without_a_lora(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no adapter_model"):
        parse_lora(str(tmp_path))


def test_a_bias_of_peft(unet: nn.Module, tmp_path: Path) -> None:
    down, up, bias = noise(R, 80), noise(80, R), noise(80)
    start = f"base_model.model.{WITH_BIAS}"
    file = written(
        tmp_path, {f"{start}.lora_A.weight": down, f"{start}.lora_B.weight": up, f"{start}.lora_B.bias": bias}
    )
    made = fused({k: torch.zeros_like(v) for k, v in unet.state_dict().items()}, changes(file, unet, 0.5), "x")
    assert np.allclose(made[f"{WITH_BIAS}.bias"], 0.5 * bias) and np.allclose(
        made[f"{WITH_BIAS}.weight"], 0.5 * up @ down, atol=1e-6
    )


@pytest.mark.seen("`bundle_emb` in a LoRA", "left out, which is said in a line")
def test_bundled_embeddings_are_left_out_with_a_line(nano: Path, tmp_path: Path) -> None:
    tensors = {key(LINEAR, "lora_down.weight"): noise(R, 80), key(LINEAR, "lora_up.weight"): noise(80, R)}
    file = written(tmp_path, tensors | {"bundle_emb.easyneg.string_to_param.*": noise(2, 128)})
    result = CliRunner().invoke(cli, ["adapt", str(nano), "--lora", str(file), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "style.safetensors: left out 1 embeddings that are bundled with it (easyneg)" in result.stderr
    plain = CliRunner().invoke(
        cli,
        ["adapt", str(nano), "--lora", str(written(tmp_path, tensors, "plain.safetensors")), "-o", str(tmp_path / "o")],
    )
    assert "left out" not in plain.stderr


# Part of a name, and what the file is called.
NAMED = {
    ".on_input": "IA³ adapter",
    ".oft_blocks": "OFT adapter",
    ".oft_diag": "OFT adapter",
    ".a1.weight": "GLoRA adapter",
    ".set_weight": "patch that sets whole weights",
    ".lora_embedding_A": "LoRA of an embedding table",
    ".boft_R": "BOFT adapter",
    ".modules_to_save.weight": "LoRA with whole layers",
}


@pytest.mark.seen("OFT, IA³, GLoRA and others", "refused as what they are")
@pytest.mark.parametrize("part", NAMED)
def test_what_cannot_be_used_is_named(unet: nn.Module, tmp_path: Path, part: str) -> None:
    tensors = {key(LINEAR, "lora_down.weight"): noise(R, 80), key(LINEAR, "lora_up.weight"): noise(80, R)}
    file = written(tmp_path, tensors | {key(LINEAR, "x")[:-2] + part: noise(80)})
    with pytest.raises(CheckpointError, match=f"is a {NAMED[part]}"):
        changes(file, unet)


@pytest.mark.seen("LoRA of Stable Diffusion XL or FLUX on another model", "refused; names the part that is not there")
@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "text_encoder_2"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "text_encoder_2"),
        ("transformer.single_transformer_blocks.0.attn.to_q", "transformer"),
    ],
)
def test_components_that_are_not_there(nano: Path, tmp_path: Path, name: str, component: str) -> None:
    tensors = {f"{name}.lora_{half}.weight": noise(*shape) for half, shape in (("A", (R, 128)), ("B", (128, R)))}
    said = rf"^style.safetensors changes {component}, which .* does not have"
    with adapted(nano, (str(written(tmp_path, tensors)),)) as folder, pytest.raises(CheckpointError, match=said):
        open_checkpoint(folder).check()


@pytest.mark.seen("LoRA file that is damaged or for another model", "named as the user named it")
def test_no_temporary_path_in_errors(nano: Path, tmp_path: Path) -> None:
    """Files that are cut, of a strange type, of wrong parts, for another model, and a checkpoint that is not there."""
    good = {key(LINEAR, "lora_down.weight"): noise(R, 80), key(LINEAR, "lora_up.weight"): noise(80, R)}
    files = {
        "cut": written(tmp_path, good, "cut.safetensors"),
        "ints": written(tmp_path, {name: torch.ones(4, 4, dtype=torch.int8) for name in good}, "ints.safetensors"),
        "other": written(
            tmp_path, {name.replace("attn2", "x"): value for name, value in good.items()}, "other.safetensors"
        ),
    }
    files["cut"].write_bytes(files["cut"].read_bytes()[:-8])
    for file in files.values():
        result = CliRunner().invoke(
            cli, ["generate", "x", "--checkpoint", str(nano), "--lora", str(file), "-o", str(tmp_path / "x.png")]
        )
        assert isinstance(result.exception, CheckpointError)
        assert str(result.exception).startswith(file.name) and "/md-export-" not in str(result.exception)
    with (
        pytest.raises(CheckpointError, match="nowhere does not exist"),
        adapted(Path("nowhere"), (str(files["cut"]),)),
    ):
        pass


# Hostile files: each is one line of ours.
HOSTILE: dict[str, tuple[dict[str, Tensor], str]] = {
    "no dimensions": (
        {key(LINEAR, "lora_down.weight"): torch.tensor(1.0), key(LINEAR, "lora_up.weight"): torch.ones(80, 4)},
        "not a matrix",
    ),
    "one dimension": (
        {key(LINEAR, "lora_down.weight"): torch.ones(80), key(LINEAR, "lora_up.weight"): torch.ones(80)},
        "does not make",
    ),
    "five": (
        {
            key(CONV, "lora_down.weight"): torch.ones(4, 48, 3, 3, 2),
            key(CONV, "lora_up.weight"): torch.ones(48, 4, 1, 1),
        },
        "does not make",
    ),
    "infinite alpha": (
        {
            key(LINEAR, "lora_down.weight"): torch.ones(4, 80),
            key(LINEAR, "lora_up.weight"): torch.ones(80, 4),
            key(LINEAR, "alpha"): torch.tensor(float("inf")),
        },
        "NaN or Inf in alpha",
    ),
    "huge alpha": (
        {
            key(LINEAR, "lora_down.weight"): torch.ones(4, 80),
            key(LINEAR, "lora_up.weight"): torch.ones(80, 4),
            key(LINEAR, "alpha"): torch.tensor(2**62),
        },
        "in alpha",
    ),
    "two forms": (
        {
            **{key(LINEAR, f"hada_w{n}_{h}"): torch.ones(80, 80) for n in "12" for h in "ab"},
            key(LINEAR, "lora_down.weight"): torch.ones(4, 80),
            key(LINEAR, "lora_up.weight"): torch.ones(80, 4),
        },
        "two forms, LoRA and LoHa",
    ),
    "both ways": (
        {
            key(LINEAR, "lokr_w1"): torch.ones(8, 8),
            key(LINEAR, "lokr_w1_a"): torch.ones(8, 1),
            key(LINEAR, "lokr_w1_b"): torch.ones(1, 8),
            key(LINEAR, "lokr_w2"): torch.ones(10, 10),
        },
        "has both",
    ),
    "a huge product": (
        {key(LINEAR, "lokr_w1"): torch.ones(3000, 1), key(LINEAR, "lokr_w2"): torch.ones(1, 3000)},
        "does not make",
    ),
    "a wide core": (
        {
            key(CONV, "lora_down.weight"): torch.ones(4, 48, 1, 1),
            key(CONV, "lora_mid.weight"): torch.ones(4, 4, 5, 5),
            key(CONV, "lora_up.weight"): torch.ones(48, 4, 1, 1),
        },
        "does not make",
    ),
    "rank 0": (
        {key(LINEAR, f"hada_w{n}_{h}"): torch.ones((80, 0) if h == "a" else (0, 80)) for n in "12" for h in "ab"},
        "with rank 0 it changes nothing",
    ),
    "DoRA of another width": (
        {
            key(LINEAR, "lora_down.weight"): torch.ones(4, 80),
            key(LINEAR, "lora_up.weight"): torch.ones(80, 4),
            key(LINEAR, "dora_scale"): torch.ones(79, 1),
        },
        "does not make",
    ),
    "DoRA alone": ({key(LINEAR, "dora_scale"): torch.ones(80, 1)}, "is incomplete"),
    "a bias that is not there": ({key(LINEAR, "diff_b"): torch.ones(80)}, "there is no bias in"),
    "a norm as a LoRA": (
        {key(NORM, "lora_down.weight"): torch.ones(1, 48), key(NORM, "lora_up.weight"): torch.ones(48, 1)},
        "needs a linear layer or a convolution",
    ),
    "another difference": ({key(LINEAR, "diff"): torch.ones(6400)}, "does not make"),
    "many parts": (
        {"a." * 10_000 + "lora_A.weight": torch.ones(4, 80), "a." * 10_000 + "lora_B.weight": torch.ones(80, 4)},
        "are not in this checkpoint's unet",
    ),
    "nested starts": (
        {
            "unet." * 10_000 + f"{LINEAR}.lora_A.weight": torch.ones(4, 80),
            "unet." * 10_000 + f"{LINEAR}.lora_B.weight": torch.ones(80, 4),
        },
        "are not in this checkpoint's unet",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(unet: nn.Module, tmp_path: Path, case: str) -> None:
    tensors, said = HOSTILE[case]
    with pytest.raises(CheckpointError, match=said) as raised:
        changes(written(tmp_path, tensors), unet)
    assert len(str(raised.value)) < 2000
