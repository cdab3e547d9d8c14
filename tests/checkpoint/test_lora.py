"""LoRA files: what their names mean, what they add, and what is said of those that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from md_export.checkpoint import Checkpoint, build_on_meta, open_checkpoint
from md_export.checkpoint.derived import LORA_NOTE, adapted, write_adapted
from md_export.checkpoint.lora import changes_of, open_lora
from md_export.checkpoint.weight_change import LOW_RANK, WeightChange, fused
from md_export.cli import cli
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.errors import ArtifactError, CheckpointError, MdExportError, ParityError, UsageError
from md_export.models.families import COMPONENTS
from md_export.parity.lora_fusing import check_fused
from md_export.parity.weights.audit import audit
from md_export.spec.loras import Lora, label, parse_lora
from md_export.spec.manifest import AddedLora, read_manifest
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.system.files import sha256_of
from training.outline import shares
from training.scenes import caption, single

LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
OUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "down_blocks.0.downsamplers.0.conv"
# Of a UNet with one layer for each level.
ORIGINAL = {
    LINEAR: "input_blocks.3.1.transformer_blocks.0.attn2.to_q",
    OUT: "input_blocks.3.1.transformer_blocks.0.attn2.to_out.0",
    CONV: "input_blocks.2.0.op",
}
TEXT = "encoder.layers.1.self_attn.q_proj"
GENERATOR = torch.Generator().manual_seed(0)
Tensors = dict[str, Tensor]


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR) * 0.1


HALVES: dict[str, tuple[Tensor, Tensor]] = {
    LINEAR: (noise(4, 80), noise(80, 4)),
    OUT: (noise(4, 80), noise(80, 4)),
    CONV: (noise(4, 48, 3, 3), noise(48, 4, 1, 1)),
}


def flat(path: str) -> str:
    return path.replace(".", "_")


def named(style: str, path: str, down: Tensor, up: Tensor) -> Tensors:
    """A module's halves as each tool calls them."""
    owner, name = path.rsplit(".to_", 1) if ".to_" in path else (path, "")
    original = ORIGINAL.get(path, path)
    forms = {
        "sgm": (f"lora_unet_{flat(original)}.lora_down.weight", f"lora_unet_{flat(original)}.lora_up.weight"),
        "comfy": (f"diffusion_model.{original}.lora_A.weight", f"diffusion_model.{original}.lora_B.weight"),
        "kohya": (f"lora_unet_{flat(path)}.lora_down.weight", f"lora_unet_{flat(path)}.lora_up.weight"),
        "diffusers": (f"unet.{path}.lora_A.weight", f"unet.{path}.lora_B.weight"),
        "older": (f"unet.{path}.lora.down.weight", f"unet.{path}.lora.up.weight"),
        "processor": (
            f"unet.{owner}.processor.to_{name.removesuffix('.0')}_lora.down.weight",
            f"unet.{owner}.processor.to_{name.removesuffix('.0')}_lora.up.weight",
        ),
        "peft": (f"base_model.model.{path}.lora_A.weight", f"base_model.model.{path}.lora_B.weight"),
        "adapter": (f"{path}.lora_A.default.weight", f"{path}.lora_B.default.weight"),
    }
    return dict(zip(forms[style], (down, up), strict=True))


def written(
    folder: Path, tensors: Tensors, name: str = "style.safetensors", metadata: dict[str, object] | None = None
) -> Path:
    path = folder / name
    about = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, about)
    return path


@pytest.fixture(scope="module")
def opened(nano: Path) -> Checkpoint:
    return open_checkpoint(nano)


@pytest.fixture(scope="module")
def unet(opened: Checkpoint) -> nn.Module:
    return build_on_meta(COMPONENTS["unet"], opened.config)


def changes(path: Path, module: nn.Module, scale: float | None = 1.0, component: str = "unet") -> list[WeightChange]:
    return changes_of(open_lora(Lora(path, path.name, scale)), component, module)


@pytest.mark.seen("LoRA of kohya, diffusers and peft", "fused to the same weights")
@pytest.mark.parametrize("style", ["kohya", "diffusers", "older", "processor", "peft", "adapter", "sgm", "comfy"])
def test_all_styles_say_the_same(unet: nn.Module, tmp_path: Path, style: str) -> None:
    paths = [LINEAR, OUT] if style == "processor" else list(HALVES)
    path = written(tmp_path, {k: v for one in paths for k, v in named(style, one, *HALVES[one]).items()})
    found = {change.module: change for change in changes(path, unet)}
    assert set(found) == set(paths)
    for name, change in found.items():
        assert torch.equal(change.parts["down"], HALVES[name][0]) and torch.equal(change.parts["up"], HALVES[name][1])
        assert change.form == LOW_RANK and change.scale == change.factor == 1.0


@pytest.mark.parametrize(
    "start", ["lora_te_text_model_", "lora_te1_text_model_", "text_encoder.text_model.", "text_encoder."]
)
def test_the_text_encoder_has_names_of_its_own(opened: Checkpoint, tmp_path: Path, start: str) -> None:
    inner = flat(TEXT) if start.startswith("lora") else TEXT
    path = written(tmp_path, {f"{start}{inner}.lora_{part}.weight": noise(*shape) for part, shape in SHAPES.items()})
    found = changes(path, build_on_meta(COMPONENTS["text_encoder"], opened.config), component="text_encoder")
    assert [change.module for change in found] == [TEXT]
    assert set(open_lora(parse_lora(str(path))).modules) == {"text_encoder"}


SHAPES = {"down": (2, 128), "up": (128, 2)}


@pytest.mark.parametrize(
    ("alpha", "metadata", "expected"),
    [
        (None, {}, 1.0),
        (torch.tensor(2.0), {}, 0.5),
        (torch.tensor(2), {}, 0.5),
        (None, {"unet.lora_alpha": 8, "unet.r": 4}, 2.0),
        (None, {"lora_alpha": 8}, 2.0),
        (None, {"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_q": 1}}, 0.25),
        (None, {"unet.lora_alpha": 8, "unet.use_rslora": True}, 4.0),
        (torch.tensor(2.0), {"unet.lora_alpha": 8}, 0.5),
    ],
)
def test_alpha(
    unet: nn.Module, tmp_path: Path, alpha: Tensor | None, metadata: dict[str, object], expected: float
) -> None:
    tensors = named("diffusers", LINEAR, *HALVES[LINEAR]) | (
        {f"unet.{LINEAR}.alpha": alpha} if alpha is not None else {}
    )
    (change,) = changes(written(tmp_path, tensors, metadata=metadata), unet, scale=0.5)
    assert change.scale * change.factor == pytest.approx(0.5 * expected)


def test_a_linear_layer_and_a_pointwise_convolution_are_one_thing(unet: nn.Module, tmp_path: Path) -> None:
    point = "down_blocks.2.resnets.0.conv_pw1"
    layer = dict(unet.named_modules())[point]
    assert isinstance(layer, nn.Conv2d)
    down, up = noise(2, layer.in_channels), noise(layer.out_channels, 2)
    (one,) = changes(written(tmp_path, named("kohya", point, down, up)), unet)
    (other,) = changes(written(tmp_path, named("kohya", LINEAR, *(x[:, :, None, None] for x in HALVES[LINEAR]))), unet)
    assert tuple(one.delta(1.0).shape) == tuple(layer.weight.shape)
    assert torch.allclose(other.delta(1.0), HALVES[LINEAR][1] @ HALVES[LINEAR][0], atol=1e-6)


def everywhere(module: nn.Module, start: str) -> Tensors:
    """A LoRA of rank 2 on every layer that takes one."""
    tensors = {}
    for path, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and getattr(layer, "groups", 1) == 1:
            ones = (1,) * (layer.weight.ndim - 2)
            tensors[f"{start}{path}.lora_A.weight"] = noise(2, *layer.weight.shape[1:])
            tensors[f"{start}{path}.lora_B.weight"] = noise(layer.weight.shape[0], 2, *ones)
    return tensors


@pytest.fixture(scope="module")
def everything(opened: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    modules = {name: build_on_meta(COMPONENTS[name], opened.config) for name in ("unet", "text_encoder")}
    tensors = {k: v for name, module in modules.items() for k, v in everywhere(module, f"{name}.").items()}
    return written(tmp_path_factory.mktemp("lora"), tensors)


@pytest.fixture(scope="module")
def styled(nano: Path, everything: Path) -> Iterator[Checkpoint]:
    with adapted(nano, (f"{everything}:0.5",)) as folder:
        yield open_checkpoint(folder)


def inputs(checkpoint: Checkpoint, name: str) -> tuple[Tensor, ...]:
    if name == "text_encoder":
        return (torch.arange(77)[None].clamp(max=40).int(),)
    return noise(*checkpoint.config.latent_shape), torch.full((1,), 999.0), noise(*checkpoint.config.text_shape)


@pytest.mark.parametrize("name", ["unet", "text_encoder"])
def test_inside_the_weights_as_beside_them(styled: Checkpoint, name: str) -> None:
    """And one layer of all that is left out, or is too strong, is noticed."""
    lines: list[str] = []
    base, added = styled.without_loras(name)
    check_fused(styled.module(name), base, added, inputs(styled, name), "it", lines.append)
    assert lines and int(lines[0].split("fused equals unfused to ")[1].split()[0]) > 100
    for wrong in (added[1:], [replace(added[0], factor=1.1 * added[0].factor), *added[1:]]):
        with pytest.raises(ParityError, match="fused into the weights"):
            check_fused(styled.module(name), base, wrong, inputs(styled, name), "it", lines.append)


def test_a_chunk_of_the_unet_has_its_loras(styled: Checkpoint, opened: Checkpoint) -> None:
    weight = f"{LINEAR}.weight"
    chunk, whole, plain = (
        checkpoint.module(name).get_parameter(weight)
        for checkpoint, name in ((styled, "unet_chunk1"), (styled, "unet"), (opened, "unet_chunk1"))
    )
    assert torch.equal(chunk, whole)
    assert not torch.equal(chunk, plain)


def test_several_add_up_and_the_files_stay_as_they_are(opened: Checkpoint, unet: nn.Module, tmp_path: Path) -> None:
    one = written(tmp_path, named("kohya", LINEAR, *HALVES[LINEAR]), "one.safetensors")
    two = written(tmp_path, named("diffusers", LINEAR, noise(1, 80), noise(80, 1)), "two.safetensors")
    weights = {f"{LINEAR}.weight": torch.zeros(80, 80)}
    each = [
        fused(weights, changes(path, unet, scale), "x")[f"{LINEAR}.weight"] for path, scale in ((one, 0.3), (two, -2.0))
    ]
    assert not weights[f"{LINEAR}.weight"].any()
    together = fused(weights, [*changes(one, unet, 0.3), *changes(two, unet, -2.0)], "x")
    assert torch.allclose(together[f"{LINEAR}.weight"], each[0] + each[1], atol=1e-6)
    assert torch.allclose(each[0], 0.3 * HALVES[LINEAR][1] @ HALVES[LINEAR][0], atol=1e-6)
    with adapted(opened.root, (f"{one}:0.3", f"{two}:-2")) as folder:
        module = open_checkpoint(folder).module("unet")
    stored = opened.module("unet").get_parameter(f"{LINEAR}.weight")
    assert torch.allclose(module.get_parameter(f"{LINEAR}.weight") - stored, each[0] + each[1], atol=1e-6)


def test_a_hash_for_what_it_changes_and_for_nothing_else(opened: Checkpoint, tmp_path: Path) -> None:
    path = written(tmp_path, named("kohya", LINEAR, *HALVES[LINEAR]))
    other = Path(shutil.copy(path, tmp_path / "renamed.safetensors"))

    def hashes(*loras: str) -> dict[str, str]:
        with adapted(opened.root, loras) as folder:
            found = open_checkpoint(folder)
            return {name: found.source_sha256(name) for name in COMPONENTS} | {"all": found.sha256()}

    bare, full, half = hashes(), hashes(str(path)), hashes(f"{path}:0.5")
    assert {name for name in bare if bare[name] != full[name]} == {"unet", "all"}
    assert {name for name in full if full[name] != half[name]} == {"unet", "all"}
    assert hashes(str(other)) == full == hashes(f"{path}:1")


def test_on_top_of_a_sibling(nano: Path, tmp_path: Path) -> None:
    path = written(tmp_path, named("kohya", LINEAR, *HALVES[LINEAR]))
    sibling = nano / "siblings" / "relu"
    with adapted(sibling, (str(path),)) as folder:
        checkpoint = open_checkpoint(folder)
        assert checkpoint.config == open_checkpoint(sibling).config
        assert checkpoint.title == f"{sibling} --lora {path.name}"
        moved = checkpoint.module("unet").get_parameter(f"{LINEAR}.weight")
        stored = open_checkpoint(sibling).module("unet").get_parameter(f"{LINEAR}.weight")
        assert not torch.equal(moved, stored)


K = "lora_unet_"
# Tensors by name and shape, and what is said of them.
WRONG: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "unknown module": (
        {
            f"{K}down_blocks_1_attentions_0_proj_inn.lora_down.weight": (4, 80),
            f"{K}down_blocks_1_attentions_0_proj_inn.lora_up.weight": (80, 4),
        },
        r"1 of its modules are not in .* unet:\n.*nearest: unet.down_blocks.1.attentions.0.proj_in\)",
    ),
    "another width": (
        {f"unet.{LINEAR}.lora_A.weight": (4, 81), f"unet.{LINEAR}.lora_B.weight": (80, 4)},
        r"does not make unet.*\[80, 80\]",
    ),
    "another rank": (
        {f"unet.{LINEAR}.lora_A.weight": (4, 80), f"unet.{LINEAR}.lora_B.weight": (80, 3)},
        "does not make",
    ),
    "another kernel": (
        {f"unet.{CONV}.lora_A.weight": (4, 48, 5, 5), f"unet.{CONV}.lora_B.weight": (48, 4, 1, 1)},
        "does not make",
    ),
    "wide up": (
        {f"unet.{CONV}.lora_A.weight": (4, 48, 1, 1), f"unet.{CONV}.lora_B.weight": (48, 4, 3, 3)},
        "does not make",
    ),
    "depthwise": (
        {
            "unet.down_blocks.2.resnets.0.conv_dw.lora_A.weight": (1, 1, 3, 3),
            "unet.down_blocks.2.resnets.0.conv_dw.lora_B.weight": (80, 1, 1, 1),
        },
        "convolution with groups",
    ),
    "one half": ({f"unet.{LINEAR}.lora_A.weight": (4, 80)}, "lacks up: the form needs all its parts"),
    "alpha alone": ({f"unet.{LINEAR}.alpha": (1,)}, "is incomplete"),
    "rank 0": (
        {f"unet.{LINEAR}.lora_A.weight": (0, 80), f"unet.{LINEAR}.lora_B.weight": (80, 0)},
        "with rank 0 it changes nothing",
    ),
    "alpha of two": (
        {
            f"unet.{LINEAR}.lora_A.weight": (4, 80),
            f"unet.{LINEAR}.lora_B.weight": (80, 4),
            f"unet.{LINEAR}.alpha": (2,),
        },
        "not one number",
    ),
    "both styles": (
        {
            f"unet.{LINEAR}.lora_A.weight": (4, 80),
            f"unet.{LINEAR}.lora_B.weight": (80, 4),
            f"unet.{LINEAR}.lora.down.weight": (4, 80),
        },
        "twice, in two styles",
    ),
    "a checkpoint": ({f"{LINEAR}.weight": (80, 80)}, "is not a LoRA: 1 of its 1 tensors"),
    "DoRA of one half": (
        {f"{K}{flat(LINEAR)}.dora_scale": (80, 1), f"{K}{flat(LINEAR)}.lora_down.weight": (4, 80)},
        "lacks up",
    ),
    "LoHa in part": ({f"{K}{flat(LINEAR)}.hada_w1_a": (80, 4)}, "lacks hada_w1_b and hada_w2_a and hada_w2_b"),
    "a core alone": ({f"{K}{flat(CONV)}.lora_mid.weight": (4, 4, 3, 3)}, "lacks down and up"),
    "peft without alpha": (
        {f"base_model.model.{LINEAR}.lora_A.weight": (4, 80), f"base_model.model.{LINEAR}.lora_B.weight": (80, 4)},
        "has no alpha",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named(unet: nn.Module, tmp_path: Path, case: str) -> None:
    shapes, message = WRONG[case]
    path = written(tmp_path, {name: torch.ones(shape) for name, shape in shapes.items()})
    with pytest.raises(CheckpointError, match=message):
        changes(path, unet, scale=None)


def test_values_that_are_not_finite(unet: nn.Module, tmp_path: Path) -> None:
    down, up = HALVES[LINEAR]
    path = written(tmp_path, named("kohya", LINEAR, down.clone().fill_(float("nan")), up))
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        changes(path, unet)
    path = written(tmp_path, named("kohya", LINEAR, down * 1e25, up * 1e25))
    with pytest.raises(CheckpointError, match="smaller scale"):
        fused({f"{LINEAR}.weight": torch.zeros(80, 80)}, changes(path, unet), "unet")


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64, b"version https://git-lfs.github.com/spec/v1\n"])
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        open_lora(parse_lora(str(path)))


NAMES = st.sampled_from(
    [name for shapes, _ in WRONG.values() for name in shapes] + ["", ".alpha", "lora_unet_.alpha", "\u202e"]
)
HUGE = '{"unet.lora_alpha": 1' + 400 * "0" + ', "unet.alpha_pattern": {"": []}}'
SIZES = st.lists(st.sampled_from([0, 1, 4, 80]), max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.dictionaries(NAMES, SIZES, max_size=5),
    metadata=st.sampled_from(["", "[]", "{", "null", '{"r": [[]]}', HUGE]),
)
def test_nothing_but_our_own_errors(
    tmp_path_factory: pytest.TempPathFactory, unet: nn.Module, shapes: dict[str, list[int]], metadata: str
) -> None:
    path = tmp_path_factory.mktemp("hostile") / "x.safetensors"
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, path, {"lora_adapter_metadata": metadata})
    try:
        found = changes(path, unet)
    except CheckpointError:
        return
    assert [change.delta(1.0).shape for change in found] == [(80, 80)], "the one layer here that such shapes fit"


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ("{", "not valid JSON"),
        ('{"base": "/etc"}', "relative"),
        ('{"base": "."}', "not another folder"),
        ('{"base": "nowhere"}', "not another folder"),
        ('{"base": "BASE"}', '"loras"'),
        ('{"base": "BASE", "loras": []}', '"loras"'),
        ('{"base": "BASE", "loras": [1]}', "needs"),
        ('{"base": "BASE", "loras": [{"name": "x", "file": "../x.safetensors"}]}', "refused"),
        ('{"base": "BASE", "loras": [{"name": "x", "file": "x.bin"}]}', "refused"),
        ('{"base": "BASE", "loras": [{"name": "x", "file": "x.safetensors"}]}', "is missing"),
        ('{"base": "BASE", "loras": [{"name": "x", "file": "0.safetensors", "scale": 1e9}]}', "not a scale"),
        ('{"base": "BASE", "loras": [{"name": "x", "file": "0.safetensors", "scale": true}]}', "not a scale"),
    ],
)
def test_notes_that_are_wrong(nano: Path, tmp_path: Path, note: str, message: str) -> None:
    (tmp_path / "base").symlink_to(nano)
    folder = tmp_path / "adapted"
    (folder / "loras").mkdir(parents=True)
    written(folder / "loras", named("kohya", LINEAR, *HALVES[LINEAR]), "0.safetensors")
    (folder / LORA_NOTE).write_text(note.replace("BASE", "../base"))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_one_that_has_loras_takes_no_more(nano: Path, tmp_path: Path) -> None:
    path = written(tmp_path, named("kohya", LINEAR, *HALVES[LINEAR]))
    (tmp_path / "one").mkdir()
    write_adapted(tmp_path / "one", nano, [parse_lora(str(path))])
    with pytest.raises(CheckpointError, match="has LoRAs itself"), adapted(tmp_path / "one", (str(path),)):
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [("nothing.safetensors", "not exist"), ("FILE:nan", "scale"), ("FILE:1e9", "scale"), ("FILE:x", "not exist")],
)
def test_what_users_write(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, {"x": torch.ones(1)})
    with pytest.raises(UsageError, match=message):
        parse_lora(text.replace("FILE", str(path)))
    (tmp_path / "x.pt").touch()
    with pytest.raises(UsageError, match="may hold code"):
        parse_lora(str(tmp_path / "x.pt"))
    assert parse_lora(f"{path}:0.5") == Lora(path, path.name, 0.5)
    assert label(["/a/My style!.safetensors:0.5", "b.safetensors"]) == "-My-style-0.5-b"


def test_artifacts_take_no_loras(tmp_path: Path) -> None:
    words = ["generate", "x", "--artifacts", str(tmp_path), "--lora", "x.safetensors", "-o", str(tmp_path / "x.png")]
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, MdExportError) or result.exit_code == 2


@pytest.mark.slow
def test_an_export(nano: Path, tmp_path: Path) -> None:
    """The manifest names it, the audit wants it, and the artifacts draw in its style; so does nothing without it."""
    lora, out = nano / "loras" / "outline.safetensors", tmp_path / "out"
    recipe = load_recipe(builtin_recipe("onnx", "fp32")).adapted((str(lora),))
    manifest, result = export(recipe, nano, out, progress=lambda _: None)
    assert result.passed and manifest == read_manifest(out) and manifest.recipe.name == "onnx-fp32-outline"
    assert manifest.loras == (AddedLora(lora.name, sha256_of(lora), 1.0, ("unet",)),)
    assert str(lora.parent) not in (out / "manifest.json").read_text()
    with adapted(nano, (str(lora),)) as folder:
        assert audit(out, folder).passed
    with pytest.raises(ArtifactError, match=r"its LoRAs, outline.safetensors \(.*\) at 1: with --lora"):
        audit(out, nano)
    scenes = [single("circle", "red", "large", "left", "sky"), single("square", "blue", "large", "bottom", "white")]
    requests = [(caption(scene), 7) for scene in scenes]
    drawn, plain = pictures_of_artifacts(out, requests), pictures_of_checkpoint(nano, requests)
    assert shares(np.stack(drawn), scenes) == {"outlined": 1.0, "shape": 1.0, "colour": 1.0}
    assert shares(np.stack(plain), scenes)["outlined"] == 0.0
