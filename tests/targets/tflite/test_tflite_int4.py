"""4-bit weights and rules by module: each weight lies in the file as its module's scheme says, and is computed so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from md_export.parity.metrics import compare
from md_export.spec.recipe import QuantScheme
from md_export.spec.scheme import WeightRule, WeightStorage
from md_export.targets import TARGETS
from md_export.targets.stored import StoredWeight
from md_export.targets.tflite.flatbuffer import decode, read_model
from md_export.targets.tflite.half.activations import write_float_weights
from md_export.targets.tflite.target import TfliteModel
from md_export.targets.tflite.weights import stored_as
from tflite_models import Subject

target = TARGETS["tflite"].open()
Subjects = Callable[..., Subject]
INT4 = QuantScheme("int4", "int8_dynamic")
MIXED = replace(
    INT4,
    keep_float=("conv_in",),
    rules=(
        WeightRule(("conv_*", "*.conv_shortcut"), "int8"),
        # Some of these are matched above; the first rule counts.
        WeightRule(("down_blocks.0.*", "*.conv_shortcut"), "float32"),
        WeightRule(("*.conv_dw", "*.ff.net.2"), "float16"),
        WeightRule(("down_blocks.1.*",), "int4", granularity="tensor"),
    ),
)


@pytest.fixture(scope="module")
def int4(subject: Subjects, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text encoder, all of it in 4 bits."""
    return subject("text_encoder").export(INT4, tmp_path_factory.mktemp("int4") / "text_encoder.tflite")


@pytest.fixture(scope="module")
def mixed(subject: Subjects, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet by rules."""
    return subject("unet").export(MIXED, tmp_path_factory.mktemp("mixed") / "unet.tflite")


def weights_of(path: Path, scheme: QuantScheme) -> dict[str, list[StoredWeight]]:
    """Weights of convolutions, linears and embeddings, by the torch module that reads them."""
    found: dict[str, list[StoredWeight]] = {}
    for weight in target.stored_weights(path, scheme):
        for use in weight.uses:
            if use.role == "weight" and weight.values.ndim > 1:
                found.setdefault(use.modules[0], []).append(weight)
    return found


def layers_of(subject: Subject) -> dict[str, nn.Module]:
    modules = dict(subject.job.module.named_modules())
    kinds = (nn.Conv2d, nn.Linear, nn.Embedding)
    return {p: m for p, m in modules.items() if isinstance(m, kinds) and not p.endswith("position_embedding")}


def storages(subject: Subject, scheme: QuantScheme) -> dict[str, WeightStorage | None]:
    """What the target says that it will do with each layer."""
    return {
        path: None if scheme.keeps_float(path) else target.weight_storage(path, layer, scheme.for_module(path))
        for path, layer in layers_of(subject).items()
    }


def check(found: Mapping[str, list[StoredWeight]], said: Mapping[str, WeightStorage | None]) -> None:
    for path, storage in said.items():
        for weight in found[path]:
            if storage is None:
                assert weight.dtype.startswith("float"), path
                continue
            assert (weight.dtype, weight.grid is not None) == (f"int{storage.bits}", True), path
            assert weight.grid is not None
            assert (weight.grid.levels, weight.grid.steps.shape) == (storage.levels, storage.groups), path


def test_all_in_four_bits(subject: Subjects, int4: Path) -> None:
    found, said = weights_of(int4, INT4), storages(subject("text_encoder"), INT4)
    assert {storage.bits for storage in said.values() if storage} == {4}
    check(found, said)
    elements = sum(layer.get_parameter("weight").numel() for layer in layers_of(subject("text_encoder")).values())
    assert target.describe(int4).stored["int4"] == elements / 2
    assert all(weight.promised for weights in found.values() for weight in weights)


def test_rules_are_obeyed_module_by_module(subject: Subjects, mixed: Path) -> None:
    found, said = weights_of(mixed, MIXED), storages(subject("unet"), MIXED)
    check(found, said)
    kinds = {path: found[path][0].dtype for path in said}
    assert kinds["conv_in"] == "float32"
    assert kinds["conv_out"] == kinds["up_blocks.2.resnets.0.conv_shortcut"] == "int8"
    assert kinds["down_blocks.0.resnets.0.conv1"] == "float32"
    assert kinds["up_blocks.0.attentions.0.proj_in"] == "int4"
    assert {kinds[path] for path in said if path.endswith("conv_dw")} == {"float16"}
    (tensor,) = found["down_blocks.1.resnets.0.conv1"]
    assert (tensor.dtype, tensor.grid is not None and tensor.grid.steps.size) == ("int4", 1)


def test_another_rule_would_have_been_noticed(subject: Subjects, mixed: Path) -> None:
    other = replace(MIXED, rules=MIXED.rules[1:])
    with pytest.raises(AssertionError, match=r"conv_shortcut|conv_out"):
        check(weights_of(mixed, other), storages(subject("unet"), other))


@pytest.mark.parametrize(
    ("operation", "asked", "made"),
    [
        ("CONV_2D", ("int4", "int8_dynamic"), "int4"),
        ("EMBEDDING_LOOKUP", ("int4", "int8_static"), "int4"),
        ("TRANSPOSE_CONV", ("int4", "int8_dynamic"), "int8"),
        ("DEPTHWISE_CONV_2D", ("int4", "int8_static"), "int8"),
        ("DEPTHWISE_CONV_2D", ("int4", "int8_dynamic"), "float32"),
        ("DEPTHWISE_CONV_2D", ("float16", "int8_dynamic"), "float16"),
        ("EMBEDDING_LOOKUP", ("float16", "float32"), "float32"),
    ],
)
def test_what_has_no_such_kernel_takes_the_next(operation: str, asked: tuple[Any, Any], made: str) -> None:
    assert stored_as(operation, QuantScheme(*asked)) == made


def test_the_grid_has_seven_levels_on_each_side(subject: Subjects, int4: Path) -> None:
    """What rounding before lowering relies on."""
    layers = layers_of(subject("text_encoder"))
    for path, (weight, *_) in weights_of(int4, INT4).items():
        assert weight.grid is not None
        steps = weight.grid.steps
        integers = np.rint(weight.values / steps).reshape(len(steps), -1)
        assert (np.abs(integers).max(1) == 7).all(), path
        values = layers[path].get_parameter("weight").detach().numpy().reshape(len(steps), -1)
        assert np.allclose(steps.ravel() * 7, np.abs(values).max(1), rtol=1e-6)
        assert np.array_equal(integers, np.rint(values / steps.reshape(-1, 1))), path


def test_weights_on_the_grid_stay_as_they_are(subject: Subjects, int4: Path, tmp_path: Path) -> None:
    on_grid = tmp_path / "float.tflite"
    assert write_float_weights(int4, on_grid)
    assert "int4" not in target.describe(on_grid).stored
    again = TfliteModel(on_grid).quantize(replace(subject("text_encoder").job, scheme=INT4))
    again.save(tmp_path / "again.tflite")
    first, second = (weights_of(path, INT4) for path in (int4, tmp_path / "again.tflite"))
    assert first.keys() == second.keys()
    for path, weights in first.items():
        assert np.allclose(weights[0].values, second[path][0].values, rtol=1e-6), path


@pytest.mark.parametrize("runtime", ["litert", "litert-builtin", "litert-reference"])
def test_the_cpu_computes_with_the_stored_weights(runtime: str, subject: Subjects, int4: Path, tmp_path: Path) -> None:
    """The rounded weights explain the error; what the int8 values add is small beside it."""
    text = subject("text_encoder")
    floats = tmp_path / "float.tflite"
    write_float_weights(int4, floats)
    (made,), (exact,) = (target.load(path, runtime).run(text.held_out).values() for path in (int4, floats))
    assert compare(made, exact).snr_db >= 35
    assert abs(compare(made, text.expected).snr_db - compare(exact, text.expected).snr_db) < 0.5
    assert compare(exact, text.expected).snr_db < 30


def test_mixed_weights_are_computed(subject: Subjects, mixed: Path, tmp_path: Path) -> None:
    decoder = subject("vae_decoder").export(INT4, tmp_path / "int4.tflite")
    for component, path in (("unet", mixed), ("vae_decoder", decoder)):
        floats = tmp_path / "float.tflite"
        write_float_weights(path, floats)
        held_out = subject(component).held_out
        (made,), (exact,) = (target.load(item).run(held_out).values() for item in (path, floats))
        assert compare(made, exact).snr_db >= 20, component


def test_values_inside_are_those_of_the_decoded_weights(subject: Subjects, int4: Path, tmp_path: Path) -> None:
    floats = tmp_path / "float.tflite"
    write_float_weights(int4, floats)
    held_out = subject("text_encoder").held_out
    # One file has the constants of the other in the same places.
    outputs = {step.modules[0]: step.outputs[0] for step in target.graph(int4).steps if step.kind == "FULLY_CONNECTED"}
    assert "encoder.layers.1.mlp.fc2" in outputs
    found, exact = (target.values(path, held_out, outputs.values()) for path in (int4, floats))
    for module, name in outputs.items():
        assert compare(found[name], exact[name]).snr_db >= 30, module


def test_the_lower_half_of_a_byte_comes_first(int4: Path, tmp_path: Path) -> None:
    """Halves the wrong way round are another weight: what reads them so is noticed by the runtime's own values."""
    damaged = tmp_path / "swapped.tflite"
    damaged.write_bytes(int4.read_bytes())
    with target.edit(damaged) as constants:
        packed = [item.values for item in constants if item.role == "packed"]
        assert packed
        for values in packed:
            values[...] = (values << 4) | (values >> 4)
    model, other = read_model(int4), read_model(damaged)
    pairs = zip(model.subgraphs[0].tensors, other.subgraphs[0].tensors, strict=True)
    stored = [(decode(model, one), decode(other, two).values) for one, two in pairs if one.type == _int4_code()]
    for right, swapped in stored:
        assert np.array_equal(right.values.reshape(-1, 2)[:, ::-1], swapped.reshape(-1, 2))


def _int4_code() -> int:
    from ai_edge_litert import schema_py_generated as schema

    return int(schema.TensorType.INT4)


def test_damage_to_packed_weights_and_scales_shows(subject: Subjects, int4: Path, tmp_path: Path) -> None:
    held_out = subject("text_encoder").held_out
    (before,) = target.load(int4).run(held_out).values()
    for role in ("packed", "scale"):
        path = tmp_path / f"{role}.tflite"
        path.write_bytes(int4.read_bytes())
        with target.edit(path) as constants:
            values = max((item.values for item in constants if item.role == role), key=lambda item: item.nbytes)
            values[...] = np.invert(values) if role == "packed" else values * 2
        (after,) = target.load(path).run(held_out).values()
        assert compare(after, before).snr_db < 20, role


def test_stored_as_float_is_seen_in_the_file(mixed: Path, subject: Subjects, tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(mixed.read_bytes())
    assert target.store_as_float(path)
    assert not {"int4", "int8"} & set(target.describe(path).stored)
    held_out = subject("unet").held_out
    (made,), (exact,) = (target.load(item).run(held_out).values() for item in (mixed, path))
    assert compare(made, exact).snr_db >= 25
    assert not target.store_as_float(path)


def test_four_bits_with_int8_values(subject: Subjects, tmp_path: Path) -> None:
    decoder = subject("vae_decoder")
    scheme = QuantScheme("int4", "int8_static", rules=(WeightRule(("decoder.conv_*",), "int8"),))
    path = decoder.export(scheme, tmp_path / "static.tflite")
    check(weights_of(path, scheme), storages(decoder, scheme))
    assert target.describe(path).int8_inputs == 1.0
    other = decoder.export(replace(scheme, activations="int8_dynamic"), tmp_path / "dynamic.tflite")
    assert target.describe(other).int8_inputs == 0.0
    assert abs(decoder.snr_db(path) - decoder.snr_db(other)) < 3


def test_rules_beside_float_weights(subject: Subjects, tmp_path: Path) -> None:
    scheme = QuantScheme("float32", "float32", rules=(WeightRule(("*.mlp.*",), "int8"),))
    path = subject("text_encoder").export(scheme, tmp_path / "x.tflite")
    check(weights_of(path, scheme), storages(subject("text_encoder"), scheme))
    assert target.describe(path).int8_weights == 4


def test_a_layer_of_another_kind_has_no_storage() -> None:
    assert target.weight_storage("norm", nn.GroupNorm(1, 2), INT4) is None
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    assert target.weight_storage("x", depthwise, INT4) is None
    assert target.weight_storage("x", depthwise, QuantScheme("int8", "float32")) == WeightStorage(8, (4, 1, 1, 1), 127)
    table = target.weight_storage("x", nn.Embedding(6, 4), QuantScheme("int4", "int8_dynamic", "tensor"))
    assert table == WeightStorage(4, (6, 1), 7)
    assert torch.Size(table.groups).numel() == 6
