"""What a step will take: predicted from measurements of this project, and from what was measured here before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from md_export.engine.plan import Cost
from md_export.spec.names import OPTIONAL_NAMES
from md_export.spec.scheme import QuantScheme
from md_export.system.files import write_whole

# Safety margin added to measured memory before a step is scheduled.
_MARGIN: Final = 1.1


@dataclass(frozen=True)
class Rate:
    """A straight line over the bytes of the weights in float32, whatever type they are stored in.

    Attributes:
        base_bytes: libraries, and a component without weights.
        per_byte: further bytes of memory for each byte of weights.
        base_s, s_per_gb: seconds.
    """

    base_bytes: int
    per_byte: float
    base_s: float
    s_per_gb: float

    def cost(self, weight_bytes: int, slower: float = 1.0, larger: float = 1.0) -> Cost:
        """What so many bytes of weights take, ``larger`` times the memory for each."""
        seconds = slower * (self.base_s + self.s_per_gb * weight_bytes / 1e9)
        return Cost(round(self.base_bytes + larger * self.per_byte * weight_bytes), round(seconds, 1))


# Through the nano checkpoint's workers (13 MB of weights) and full-size ones: "The whole build" in
# docs/benchmarks.md, of a checkpoint in float16, whose weights are converted into memory. Largest of all precisions.
# The decoder's lines are steep because of its activations, 512 × 512 pixels at full size.
_ARTIFACT: Final[Mapping[tuple[str, str], Rate]] = {
    ("coreml", "text_encoder"): Rate(510_000_000, 3.9, 5, 50),
    ("coreml", "unet"): Rate(530_000_000, 1.9, 11, 80),
    ("coreml", "vae_decoder"): Rate(480_000_000, 19.0, 5, 400),
    ("tflite", "text_encoder"): Rate(730_000_000, 4.8, 7, 75),
    ("tflite", "unet"): Rate(800_000_000, 3.5, 25, 105),
    ("tflite", "vae_decoder"): Rate(690_000_000, 13.5, 9, 680),
    ("onnx", "text_encoder"): Rate(530_000_000, 1.9, 5, 40),
    ("onnx", "unet"): Rate(480_000_000, 1.6, 8, 25),
    ("onnx", "vae_decoder"): Rate(430_000_000, 18.5, 3, 400),
    ("coreai", "text_encoder"): Rate(560_000_000, 4.0, 5, 40),
    ("coreai", "unet"): Rate(540_000_000, 4.0, 12, 40),
    ("coreai", "vae_decoder"): Rate(480_000_000, 5.0, 5, 300),
}
# onnxruntime's calibrator and quantizer hold copies of the graph, and activations of all layers at a time.
_STATIC_ONNX: Final[Mapping[str, Rate]] = {
    "text_encoder": Rate(530_000_000, 4.3, 10, 150),
    "unet": Rate(480_000_000, 6.9, 16, 200),
    "vae_decoder": Rate(430_000_000, 98.0, 6, 8000),
}
# All components of an export, two processes at a time, over 4 golden cases, each run twice; docs/benchmarks.md: once
# takes 40 s by our runtime of Core ML packages, 3 s by XNNPACK. By onnxruntime: 5 s.
_EXPORT: Final[Mapping[str, Rate]] = {
    "coreml": Rate(1_000_000_000, 1.2, 15, 60),
    "tflite": Rate(800_000_000, 1.6, 10, 15),
    "onnx": Rate(600_000_000, 1.6, 10, 25),
    "coreai": Rate(600_000_000, 3.0, 15, 400),
}
# All components in torch, one in memory at a time, for one case; docs/benchmarks.md.
_CASE: Final = Rate(700_000_000, 1.0, 0.3, 12)
# Times slower than storing floats; nano: 23.9 s beside 11.5 for a palette, 21.0 for static ranges.
_SLOWER: Final[Mapping[str, float]] = {"palette": 2.2, "int8_static": 2.0, "int16_static": 2.0, "gptq": 2.0, "mse": 1.5}

# Of float32 weights, by the type that they are stored in, generously.
_SPACE: Final = {"float32": 1.1, "float16": 0.7}
_SPACE_OF_OTHERS: Final = 0.4


def space_of(scheme: QuantScheme, weight_bytes: int) -> int:
    """About how many bytes an artifact will have."""
    return round(weight_bytes * _SPACE.get(scheme.weights, _SPACE_OF_OTHERS))


def artifact_cost(target: str, component: str, scheme: QuantScheme, weight_bytes: int, area: float = 1.0) -> Cost:
    """Of making one artifact; ``area`` of the picture, relative to what the checkpoint was trained for.

    One that not every checkpoint has costs what the one does that it stands beside.
    """
    component = OPTIONAL_NAMES.get(component, component)
    words = (*scheme.all_weights, scheme.activations, scheme.rounding)
    slower = [times for word, times in _SLOWER.items() if any(one.startswith(word) for one in words)]
    # A line through weights says nothing of smaller pictures; in larger ones the decoder's activations grow.
    area = max(1.0, area) if component == "vae_decoder" else 1.0
    if target == "onnx" and scheme.activations == "int8_static":
        return _STATIC_ONNX[component].cost(weight_bytes, area, area)
    return _ARTIFACT[target, component].cost(weight_bytes, area * max(slower, default=1.0), area)


def export_cost(target: str, weight_bytes: int, cases: int, area: float = 1.0) -> Cost:
    """Of verifying an export on golden cases."""
    return _EXPORT[target].cost(weight_bytes, max(1.0, area) * max(1.0, cases / 4), max(1.0, area))


def cases_cost(weight_bytes: int, cases: int, area: float = 1.0) -> Cost:
    """Of computing golden or calibration cases by torch, or of copying them where there are none to compute."""
    if cases == 0:
        return Cost(300_000_000, 8.0)
    found = _CASE.cost(weight_bytes, cases * max(1.0, area))
    return Cost(found.peak_bytes, found.seconds + 8)


class Measured:
    """What steps took in earlier builds, in ``folder``, by their cost keys."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, cost_key: str, cost: Cost) -> None:
        """Remember what the last such step took."""
        write_whole(self._folder / f"{cost_key}.json", json.dumps(asdict(cost)), keep_going=True)

    def cost(self, cost_key: str, predicted: Cost) -> Cost:
        """What such a step took with some margin, else what was predicted."""
        try:
            found = json.loads((self._folder / f"{cost_key}.json").read_text(encoding="utf-8"))
            return Cost(round(found["peak_bytes"] * _MARGIN), round(found["seconds"], 1))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return predicted
