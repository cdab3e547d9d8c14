"""What a saved file holds: types as the scheme says, module paths, no trace of where it was made, same bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from md_export.spec.recipe import QuantScheme
from md_export.targets import TARGETS

target = TARGETS["tflite"].open()

COMPONENT_NAMES = ("text_encoder", "unet", "vae_decoder")


def weighted(module: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Linear, nn.Conv2d, nn.Embedding)
    modules = {path: child for path, child in module.named_modules() if isinstance(child, kinds)}
    # The position embedding is a constant that is added, no look-up.
    return {path: child for path, child in modules.items() if not path.endswith("position_embedding")}


def is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


@pytest.mark.parametrize("component", COMPONENT_NAMES)
def test_every_weight_is_named_after_its_module(
    component: str, subject: Callable[..., Any], artifact: Callable[..., Path]
) -> None:
    assert sorted(target.describe(artifact(component, "fp32")).float_weights) == sorted(
        weighted(subject(component).job.module)
    )


@pytest.mark.parametrize("component", COMPONENT_NAMES)
def test_int8_holds_no_float_weight_but_the_depthwise_ones(
    component: str, subject: Callable[..., Any], artifact: Callable[..., Path]
) -> None:
    modules = weighted(subject(component).job.module)
    described = target.describe(artifact(component, "int8"))
    depthwise = sorted(path for path, module in modules.items() if is_depthwise(module))
    assert sorted(described.float_weights) == depthwise
    assert described.int8_weights == len(modules) - len(depthwise)


@pytest.mark.parametrize(("scheme", "share"), [("int8_static", 1.0), ("int8_weights", 0.0), ("int8", 0.0)])
def test_which_ops_take_int8_values_is_read_from_the_file(
    scheme: str, share: float, subject: Callable[..., Any], artifact: Callable[..., Path]
) -> None:
    described = target.describe(artifact("text_encoder", scheme))
    assert described.int8_inputs == share
    # The embedding too, whose output stays float: the GPU engine takes no DEQUANTIZE of a whole table.
    assert described.int8_weights == len(weighted(subject("text_encoder").job.module))
    assert described.ops["EMBEDDING_LOOKUP"] == 1


def test_fp16_halves_the_weights_and_leaves_the_embedding(
    subject: Callable[..., Any], artifact: Callable[..., Path]
) -> None:
    modules = weighted(subject("text_encoder").job.module)
    table = modules.pop("embeddings.token_embedding")
    halved = sum(2 * module.weight.numel() for module in modules.values() if isinstance(module, nn.Linear))
    before, after = (target.describe(artifact("text_encoder", scheme)).stored for scheme in ("fp32", "fp16"))
    assert after["float16"] == halved
    assert after["float32"] == before["float32"] - 2 * halved
    assert isinstance(table, nn.Embedding)


@pytest.mark.parametrize(
    ("component", "patterns"),
    [
        ("text_encoder", ("encoder.layers.0.self_attn.q_proj",)),
        ("vae_decoder", ("decoder.up_blocks.3.*", "*.conv_in", "decoder.up_blocks.?.resnets.[0]")),
        ("unet", ("*.attn2.to_[kv]", "conv_out")),
    ],
)
def test_keep_float_keeps_exactly_the_matching_modules(
    component: str, patterns: tuple[str, ...], subject: Callable[..., Any], tmp_path: Path
) -> None:
    path = subject(component).export(QuantScheme("int8", "int8_dynamic", keep_float=patterns), tmp_path / "x.tflite")
    modules = weighted(subject(component).job.module)
    wanted = [p for p, m in modules.items() if is_depthwise(m) or any(fnmatchcase(p, glob) for glob in patterns)]
    assert sorted(target.describe(path).float_weights) == sorted(wanted)


def test_a_file_tells_nothing_about_where_it_was_made(artifact: Callable[..., Path]) -> None:
    for scheme in ("fp32", "int8"):
        content = artifact("unet", scheme).read_bytes()
        assert str(Path.cwd()).encode() not in content
        assert b"site-packages" not in content
        assert b".py" not in content


PROCESS = """
import sys
from pathlib import Path
from tflite_models import SCHEMES, build_subject
from small_models import NANO
folder = Path(sys.argv[1])
made = build_subject("text_encoder", NANO, folder)
for name in sys.argv[2:]:
    made.export(SCHEMES[name], folder / f"{name}.tflite")
"""


def test_another_process_with_another_hash_seed_gives_the_same_bytes(
    artifact: Callable[..., Path], tmp_path: Path
) -> None:
    schemes = ("fp32", "fp16", "int8", "int8_static")
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "4321",
        "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), *sys.path)),
    }
    subprocess.run([sys.executable, "-c", PROCESS, str(tmp_path), *schemes], check=True, env=environment)
    for scheme in schemes:
        mine, theirs = artifact("text_encoder", scheme), tmp_path / f"{scheme}.tflite"
        assert hashlib.sha256(mine.read_bytes()).digest() == hashlib.sha256(theirs.read_bytes()).digest(), scheme


def test_save_refuses_to_overwrite(subject: Callable[..., Any], artifact: Callable[..., Path]) -> None:
    with pytest.raises(FileExistsError):
        subject("text_encoder").lowered.save(artifact("text_encoder", "fp32"))


def test_float32_is_the_lowered_file_itself(subject: Callable[..., Any]) -> None:
    text = subject("text_encoder")
    scheme = QuantScheme("float32", "float32")
    assert text.lowered.quantize(replace(text.job, scheme=scheme)) is text.lowered
