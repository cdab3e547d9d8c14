"""What artifact_hashes.py builds: a table of commands, and the few inputs that no command makes."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

ROOT: Final = Path(__file__).resolve().parent.parent
WEIGHTS: Final = "diffusion_pytorch_model.safetensors"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # helpers import the code beside this file

# Entry and command; a line that begins with blanks is a further command of the same entry. {out} is the entry's folder,
# {NAME} the folder of the entry NAME, which is made first. A command that begins with "!" is one of HELPERS.
RECIPES: Final = [path.stem for path in sorted((ROOT / "recipes").glob("*.toml")) if path.stem != "ship"]
TABLE = "".join(f"{name} build {name} --checkpoint {{nano}} --jobs 1 -o {{out}}\n" for name in RECIPES)
TABLE += """\
nano !nano
golden golden {nano} CASES -o {out}/golden
golden-encoder golden {nano}/siblings/encoder --encoder CASES -o {out}/golden
golden-inpaint golden {nano}/siblings/inpaint CASES -o {out}/golden
golden-adapter golden {nano}/adapters/edges CASES -o {out}/golden
golden-lora golden {nano} --lora {nano}/loras/outline.safetensors:0.5 CASES -o {out}/golden
golden-size golden {nano} --size 96 CASES -o {out}/golden
golden-ddim golden {nano} --steps 6 --guidance 3 CASES -o {out}/golden
encoder onnx {nano}/siblings/encoder --fp16 --encoder -o {out}/onnx
    tflite {nano}/siblings/encoder --int8 --component vae_encoder -o {out}/tflite
    coreml {nano}/siblings/encoder --fp16 --component vae_encoder -o {out}/coreml
    coreai {nano}/siblings/encoder --fp16 --component vae_encoder -o {out}/coreai
gelu onnx {nano}/siblings/gelu --fp16 -o {out}/onnx
    tflite {nano}/siblings/gelu --int8 --component unet -o {out}/tflite
relu onnx {nano}/siblings/relu --fp16 -o {out}/onnx
    tflite {nano}/siblings/relu --int8 --component unet -o {out}/tflite
inpaint onnx {nano}/siblings/inpaint --fp16 -o {out}/onnx
    tflite {nano}/siblings/inpaint --int8 --component unet -o {out}/tflite
lora onnx {nano} --fp16 --lora {nano}/loras/outline.safetensors -o {out}/onnx
    coreml {nano} --fp16 --lora {nano}/loras/outline.safetensors:0.5 -o {out}/coreml
    adapt {nano} --lora {nano}/loras/outline.safetensors:0.5 -o {out}/adapted
adapter onnx {nano}/adapters/edges --fp16 -o {out}/onnx
    coreml {nano}/adapters/edges --fp16 -o {out}/coreml
    adapt {nano} --adapter {nano}/adapters/edges/t2i_adapter -o {out}/adapted
controlnet !controlnet
    adapt {nano} --controlnet {out}/net -o {out}/adapted
    golden {out}/adapted CASES -o {out}/golden
    onnx {out}/adapted --fp16 --golden {out}/golden -o {out}/onnx
    coreml {out}/adapted --fp16 --component controlnet --golden {out}/golden -o {out}/coreml
size onnx {nano} --fp32 --size 96 --golden {golden-size}/golden -o {out}/onnx
ddim onnx {nano} --fp16 --steps 8 --guidance 4 -o {out}/onnx
join coreml {nano} --fp16 --golden {golden}/golden -o {out}/one
    coreml {nano} --fp16 --size 96 --golden {golden-size}/golden -o {out}/other
    join {out}/one {out}/other -o {out}/joined
    split {out}/joined size_96 -o {out}/split
swift coreml {nano} --fp16 --layout swift --golden {golden}/golden -o {out}/coreml
cpu-fused onnx {nano} --fp32 --cpu-fused --golden {golden}/golden -o {out}/onnx
folds onnx {nano} --fp32 FOLDS -o {out}/onnx
drift coreml {nano} --fp16 --component unet --rewrite softmax_to_relu --allow-drift -o {out}/relu
    tflite {nano}/siblings/gelu --fp16 --component unet --rewrite gelu_to_swish --allow-drift -o {out}/swish
stable !stable
stable-onnx onnx {stable}/stable --fp16 -o {out}/onnx
stable-coreml coreml {stable}/stable --fp16 -o {out}/coreml
stable-tflite tflite {stable}/stable --int8 --component unet -o {out}/tflite
init-nano init {out}/nano --arch nano --seed 5
init-md-lite init {out}/md-lite --arch md-lite
unpack init {out}/sd15 --arch sd15
    !single-file
    unpack {out}/single.safetensors --tokenizer {out}/sd15/tokenizer -o {out}/unpacked
generate !mask
    generate PROMPT -o {out}/torch.png --checkpoint {nano}
    generate PROMPT -o {out}/size.png --checkpoint {nano} --size 96
    generate PROMPT -o {out}/ddim.png --checkpoint {nano} --steps 4 --guidance 3
    generate PROMPT -o {out}/lora.png --checkpoint {nano} --lora {nano}/loras/outline.safetensors
    generate PROMPT -o {out}/onnx.png --artifacts {onnx-fp16}/onnx-fp16 --seed 1
    generate PROMPT -o {out}/coreml.png --artifacts {coreml-int8}/coreml-int8
    generate PROMPT -o {out}/tflite.png --artifacts {tflite-int8}/tflite-int8
    generate PROMPT -o {out}/ddim-onnx.png --artifacts {ddim}/onnx
    generate PROMPT -o {out}/adapter.png --checkpoint {nano}/adapters/edges --condition {out}/mask.png
    generate PROMPT -o {out}/adapter-onnx.png --artifacts {adapter}/onnx --condition {out}/mask.png
    generate PROMPT -o {out}/changed-onnx.png --artifacts {encoder}/onnx --init-image {out}/torch.png --strength 0.5
    generate PROMPT -o {out}/inpaint.png --checkpoint {nano}/siblings/inpaint --init-image {out}/torch.png MASK
    generate PROMPT -o {out}/inpaint-onnx.png --artifacts {inpaint}/onnx --init-image {out}/torch.png MASK
search-onnx search {nano} --target onnx --budget bits=5 --jobs 1 -o {out}/found
search-coreml search {nano} --target coreml --budget picture=40 --component vae_decoder --jobs 1 -o {out}/found
"""
PROMPT: Final = '"a large red circle on the left, white background"'
CASES: Final = f'--prompt {PROMPT} --prompt "a small blue square in the center, gray background" --seed 3'
FOLDS: Final = " ".join(
    f"--rewrite {name}" for name in ("linear_to_conv2d", "split_attention_heads", "fold_timestep", "fold_x0")
)
WORDS: Final = {"CASES": CASES, "PROMPT": PROMPT, "MASK": "--mask {out}/mask.png", "FOLDS": FOLDS}
LARGE: Final = ("init-md-lite", "unpack")  # their files are removed once they are listed
ENTRIES: dict[str, list[str]] = {}
for _line in TABLE.splitlines():
    _name, _command = ([*ENTRIES][-1], _line) if _line.startswith(" ") else _line.split(" ", 1)
    ENTRIES.setdefault(_name, []).append(" ".join(WORDS.get(word, word) for word in _command.split()))


def copy_nano(out: Path) -> None:
    """Copy the nano checkpoint, so that relative paths to it do not depend on the place of the code."""
    shutil.copytree(ROOT / "golden/nano", out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("training", "_*"))


def write_controlnet(out: Path) -> None:
    """Write `net`: the down path of the nano UNet, and random layers beside it."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(ROOT / "golden/nano/unet" / WEIGHTS)
    tensors = {k: v for k, v in tensors.items() if k.startswith(("conv_in.", "time_embedding.", "down_blocks."))}
    added = [("mid_block", 96, 96, 1)] + [(f"down_blocks.{i}", c, c, 1) for i, c in enumerate((48, 48, 48, 80))]
    names = ("conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out")
    widths = (1, 8, 8, 8, 8, 12, 12, 16, 48)
    added += [(f"cond_embedding.{name}", widths[i + 1], widths[i], 3) for i, name in enumerate(names)]
    generator = np.random.default_rng(5)
    for name, c_out, c_in, side in added:
        for part, shape in (("weight", (c_out, c_in, side, side)), ("bias", (c_out,))):
            tensors[f"controlnet_{name}.{part}"] = (0.1 * generator.standard_normal(shape)).astype(np.float16)
    (out / "net").mkdir()
    save_file(tensors, out / "net" / WEIGHTS)
    config = {"conditioning_channels": 1, "conditioning_embedding_out_channels": [8, 8, 12, 16]}
    (out / "net/config.json").write_text(json.dumps(config), encoding="utf-8")


def write_stable(out: Path) -> None:
    """Write `stable`, a small random Stable Diffusion, by the function of the package, in whichever module that is."""
    from small_models import STABLE

    (path,) = (path for path in (ROOT / "md_export").rglob("*.py") if "\ndef write_checkpoint(" in path.read_text())
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    importlib.import_module(name).write_checkpoint(out / "stable", STABLE, seed=7)


def write_single_file(out: Path) -> None:
    """Write the tensors of `sd15` as a single file, under the names of the authors of Stable Diffusion."""
    from safetensors.torch import load_file, save_file

    from single_file import renamed, text_name, unet_name, vae_name

    unet = partial(unet_name, with_attention=(False, True, True, True), layers=2)
    tensors = renamed(load_file(out / "sd15/unet" / WEIGHTS), unet)
    tensors |= renamed(load_file(out / "sd15/vae" / WEIGHTS), partial(vae_name, levels=4))
    tensors |= renamed(load_file(out / "sd15/text_encoder/model.safetensors"), text_name)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / "single.safetensors")


def write_mask(out: Path) -> None:
    """Write a picture of a white square on black."""
    Image.fromarray(np.pad(np.full((24, 24), 255, np.uint8), 20)).save(out / "mask.png")


HELPERS: dict[str, Callable[[Path], None]] = {
    "!nano": copy_nano,
    "!controlnet": write_controlnet,
    "!stable": write_stable,
    "!single-file": write_single_file,
    "!mask": write_mask,
}
