"""Writes trained weights as a checkpoint folder in diffusers' layout, and siblings as differences.

Run from golden/nano: ``python -m training.checkpoint``. Each file is replaced at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from md_export.models.unet import MDUNetConfig
from training.latents import WORK
from training.model import Nano, load_decoder, text_config, unet_config, vae_config
from training.text import CaptionEncoder
from training.tokenizer import FOLDER as TOKENIZER

NANO = Path(__file__).resolve().parents[1]
WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXT_PREFIX = "text_model."
#: sibling -> (activation, attention, what its sibling.json says)
SIBLINGS: dict[str, tuple[str, str, str]] = {
    "gelu": ("gelu", "softmax", "gelu in the gated feed-forward; fine-tuned from the parent"),
    "relu": ("swish", "relu", "relu(q k^T / sqrt d) / L attention; fine-tuned from the parent at 77 tokens"),
}

Weights = Mapping[str, Tensor]


def averaged_weights(work: Path, name: str) -> dict[str, Tensor]:
    """The averaged weights of run `name`, float32, as the names of :class:`Nano`."""
    weights: dict[str, Tensor] = torch.load(work / f"{name}.pt", weights_only=True)["average"]
    return weights


def write_parent(weights: Weights, decoder: Weights, folder: Path) -> None:
    """The whole folder but the tokenizer and the siblings; weights become float16."""
    vocabulary = len(CaptionEncoder(TOKENIZER))
    _json(folder / "model_index.json", _index())
    _json(folder / "scheduler/scheduler_config.json", _scheduler())
    _json(folder / "text_encoder/config.json", _text_config(vocabulary))
    _json(folder / "unet/config.json", unet_json(unet_config()))
    _json(folder / "vae/config.json", {"_class_name": "AutoencoderKL", **dataclasses.asdict(vae_config())})
    text = {TEXT_PREFIX + key: value for key, value in under(weights, "text_encoder.").items()}
    _weights(folder / "text_encoder/model.safetensors", text)
    _weights(folder / "unet" / WEIGHTS, under(weights, "unet."))
    _weights(folder / "vae" / WEIGHTS, decoder)


def write_sibling(name: str, weights: Weights, folder: Path) -> int:
    """Writes siblings/NAME against the parent on disk; returns how many values differ."""
    activation, attention, note = SIBLINGS[name]
    parent = load_file(folder / "unet" / WEIGHTS)
    changed = {
        key: value for key, value in under(weights, "unet.").items() if not torch.equal(value.half(), parent[key])
    }
    place = folder / "siblings" / name
    _json(place / "sibling.json", {"parent": "../..", "note": note})
    _json(place / "unet/config.json", unet_json(unet_config(activation, attention)))
    _weights(place / "unet" / WEIGHTS, changed)
    return sum(value.numel() for value in changed.values())


def load_nano(folder: Path, sibling: str | None = None) -> Nano:
    """The stored float16 weights as a float32 model: the parent, or a sibling laid over it."""
    activation, attention, _ = SIBLINGS[sibling] if sibling else ("swish", "softmax", "")
    model = Nano(len(CaptionEncoder(TOKENIZER)), unet_config(activation, attention))
    text = under(load_file(folder / "text_encoder/model.safetensors"), TEXT_PREFIX)
    unet = load_file(folder / "unet" / WEIGHTS)
    if sibling:
        unet |= load_file(folder / "siblings" / sibling / "unet" / WEIGHTS)
    model.text_encoder.load_state_dict(text)
    model.unet.load_state_dict(unet)
    return model.float().eval()


def under(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """The entries whose name starts with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def unet_json(config: MDUNetConfig) -> dict[str, object]:
    """`unet/config.json`; every field is written, so that nothing hangs on a default."""
    return {"_class_name": "MDUNet", **dataclasses.asdict(config)}


def _index() -> dict[str, object]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["md_export", "MDUNet"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _scheduler() -> dict[str, object]:
    return {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
    }


def _text_config(vocabulary: int) -> dict[str, object]:
    config = text_config(vocabulary).to_dict()
    kept = {key: value for key, value in config.items() if value is not None and key != "transformers_version"}
    return {**kept, "architectures": ["CLIPTextModel"], "torch_dtype": "float16"}


def _json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    new.replace(path)


def _weights(path: Path, weights: Weights) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    save_file({key: value.half().contiguous() for key, value in sorted(weights.items())}, new, {"format": "pt"})
    new.chmod(0o644)
    new.replace(path)


def main() -> None:
    """Writes the parent and every sibling; a sibling that has not been trained takes the parent's weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--folder", type=Path, default=NANO)
    arguments = parser.parse_args()
    weights = averaged_weights(arguments.work, "main")
    write_parent(weights, load_decoder(arguments.work / "decoder.pt").state_dict(), arguments.folder)
    for name in SIBLINGS:
        trained = (arguments.work / f"{name}.pt").exists()
        count = write_sibling(name, averaged_weights(arguments.work, name) if trained else weights, arguments.folder)
        print(f"sibling {name}: {count} values differ from the parent")


if __name__ == "__main__":
    main()
