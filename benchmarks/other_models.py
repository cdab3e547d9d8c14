"""Modules of models that have no checkpoint folder here, lowered and executed: SDXL's text encoders, DiT's transformer.

    python benchmarks/other_models.py            at full size, random weights, ONNX and Core ML in float16
    python benchmarks/other_models.py dit onnx   one of them

Each is diffusers' or transformers' own module, with the outputs that its pipeline reads; torch in float32 is the
reference.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from md_export.models.text_encoder import MASKED
from md_export.parity.metrics import compare
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Arrays, TensorSpec
from md_export.system.vendors import import_quietly
from md_export.targets import TARGETS
from md_export.targets.contract import LoweringJob

FLOAT16: Final = QuantScheme("float16", "float16")
LENGTH: Final = 77
TARGETS_HERE: Final = ("onnx", "coreml")


class PenultimateText(nn.Module):
    """SDXL's first text encoder: CLIPTextModel up to the layer before the last, no final norm."""

    mask: Tensor

    def __init__(self, clip: Any) -> None:
        super().__init__()
        clip.config._attn_implementation = "eager"
        self.embeddings, self.layers = clip.embeddings, clip.encoder.layers
        self.register_buffer("mask", torch.full((LENGTH, LENGTH), MASKED).triu(1)[None, None], persistent=False)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """``[1, 77]`` → ``[1, 77, hidden]``."""
        return (self.layered(input_ids, len(self.layers) - 1),)

    def layered(self, input_ids: Tensor, count: int) -> Tensor:
        """Through the first ``count`` layers."""
        hidden: Tensor = self.embeddings(input_ids=input_ids)
        for layer in self.layers[:count]:
            out = layer(hidden, self.mask)
            hidden = out if isinstance(out, Tensor) else out[0]
        return hidden


class ProjectedText(PenultimateText):
    """SDXL's second: the same, and the projected state of the last token beside it."""

    def __init__(self, clip: Any) -> None:
        super().__init__(clip.text_model)
        self.final_layer_norm, self.text_projection = clip.text_model.final_layer_norm, clip.text_projection

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """``[1, 77]`` → ``[1, 77, hidden]``, ``[1, projection]``; the last token has the highest id."""
        before = self.layered(input_ids, len(self.layers) - 1)
        last = self.layers[-1](before, self.mask)
        hidden = self.final_layer_norm(last if isinstance(last, Tensor) else last[0])
        end = torch.arange(LENGTH)[None] == input_ids.argmax(dim=-1, keepdim=True)
        pooled = (hidden * end.to(hidden.dtype)[:, :, None]).sum(dim=1)
        return before, self.text_projection(pooled)


class Transformer(nn.Module):
    """DiT's, without the answer's dataclass."""

    def __init__(self, dit: nn.Module) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> tuple[Tensor, ...]:
        """``[1, C, h, w]``, ``[1]``, ``[1]`` → noise and variance ``[1, 2·C, h, w]``."""
        return (self.dit(sample, timestep=timestep, class_labels=class_labels, return_dict=False)[0],)


@dataclass(frozen=True)
class Model:
    """One module with inputs as they occur, and what the library's own call answers."""

    name: str
    module: nn.Module
    arrays: Arrays
    library: Callable[[], tuple[Tensor, ...]]


def clip_model(projected: bool, **config: Any) -> Model:
    """Text encoder 1, or 2 with ``projected``; ``config`` of CLIPTextConfig."""
    clip = import_quietly("transformers.models.clip.modeling_clip", "checkpoints")
    torch.manual_seed(0)
    kind = clip.CLIPTextModelWithProjection if projected else clip.CLIPTextModel
    model = _frozen(kind(clip.CLIPTextConfig(**config)))
    end = config["vocab_size"] - 1
    ids = torch.randint(3, end, (1, LENGTH))
    ids[0, 20:] = 0
    ids[0, 20] = end

    def call() -> tuple[Tensor, ...]:
        out = model(ids, output_hidden_states=True)
        return (out.hidden_states[-2], *([out.text_embeds] if projected else []))

    module = ProjectedText(model) if projected else PenultimateText(model)
    name = "SDXL text encoder 2" if projected else "SDXL text encoder 1"
    return Model(name, module.eval(), {"input_ids": ids.to(torch.int32).numpy()}, call)


def dit_model(**config: Any) -> Model:
    """``config`` of DiTTransformer2DModel; DiT-XL/2's by default."""
    library = import_quietly("diffusers.models.transformers.dit_transformer_2d", "diffusers")
    torch.manual_seed(0)
    model = _frozen(library.DiTTransformer2DModel(out_channels=8, **config))
    side = model.config.sample_size
    given = torch.randn(1, 4, side, side), torch.tensor([999]), torch.tensor([7])
    arrays = dict(zip(("sample", "timestep", "class_labels"), (t.numpy() for t in given), strict=True))
    arrays |= {name: arrays[name].astype(np.int32) for name in ("timestep", "class_labels")}
    return Model("DiT-XL/2 transformer", Transformer(model).eval(), arrays, lambda: (model(*given).sample,))


def _frozen(module: Any) -> Any:
    return module.eval().requires_grad_(False)


_CLIP: Final = {"vocab_size": 49408, "max_position_embeddings": LENGTH, "bos_token_id": 49406, "eos_token_id": 2}
MODELS: Final[Mapping[str, Callable[[], Model]]] = {
    "text1": lambda: clip_model(
        False, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **_CLIP
    ),
    "text2": lambda: clip_model(
        True,
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
        **_CLIP,
    ),
    "dit": dit_model,
}


def lowered_db(model: Model, target_name: str, workdir: Path) -> list[float]:
    """SNR in dB of each output of the artifact in float16, executed by its target's runtime, against torch."""
    target = TARGETS[target_name].open()
    with torch.no_grad():
        expected = [out.numpy() for out in model.module(*(torch.from_numpy(a) for a in model.arrays.values()))]
    inputs = tuple(TensorSpec(name, array.shape, array.dtype.name) for name, array in model.arrays.items())
    outputs = tuple(TensorSpec(f"out{index}", array.shape, "float32") for index, array in enumerate(expected))
    job = LoweringJob("unet", model.module, inputs, outputs, model.arrays, FLOAT16, (model.arrays,), workdir)
    path = workdir / f"model{TARGETS[target_name].suffix}"
    target.lower(job).quantize(job).save(path)
    model.module.to("meta")
    gc.collect()
    made = target.load(path).run(model.arrays)
    return [compare(made[spec.name], wanted).snr_db for spec, wanted in zip(outputs, expected, strict=True)]


def row(name: str, target: str) -> None:
    """Print one; in a process of its own, whose peak it is."""
    model = MODELS[name]()
    size, started = sum(p.numel() for p in model.module.parameters()), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        found = ", ".join(f"{value:.1f}" for value in lowered_db(model, target, Path(folder)))
    spent, peak = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"| {model.name} | {size / 1e6:.0f} | {target} | {spent:.0f} | {peak / 1e3:,.0f} | {found} |", flush=True)


def main(asked: set[str]) -> None:
    print("| module | parameters M | target | CPU s | peak MB | SNR dB |\n|---|---:|---|---:|---:|---|", flush=True)
    names = [name for name in MODELS if name in asked] or [*MODELS]
    targets = [target for target in TARGETS_HERE if target in asked] or [*TARGETS_HERE]
    for name, target in itertools.product(names, targets):
        process = multiprocessing.get_context("spawn").Process(target=row, args=(name, target))
        process.start()
        process.join()


if __name__ == "__main__":
    main(set(sys.argv[1:]))
