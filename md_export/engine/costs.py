"""Predicted memory and time of build steps, from this project's benchmarks and from earlier builds on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic_core import from_json

from md_export.engine.plan import Cost
from md_export.spec.names import OPTIONAL_NAMES, whole_of
from md_export.spec.scheme import QuantScheme
from md_export.system.files import write_whole

# Safety margin added to measured memory before a step is scheduled.
_MARGIN: Final = 1.1


@dataclass(frozen=True)
class Rate:
    """Linear cost model over the size of the weights in float32, independent of the type they are stored in.

    Attributes:
        base_bytes: memory for the libraries and for a component without weights.
        per_byte: additional bytes of memory per byte of weights.
        base_s: seconds for a component without weights.
        s_per_gb: additional seconds per gigabyte (1e9 bytes) of weights.
    """

    base_bytes: int
    per_byte: float
    base_s: float
    s_per_gb: float

    def cost(self, weight_bytes: int, slower: float = 1.0, larger: float = 1.0) -> Cost:
        """Return the cost for ``weight_bytes``, with time scaled by ``slower`` and memory per byte by ``larger``."""
        seconds = slower * (self.base_s + self.s_per_gb * weight_bytes / 1e9)
        return Cost(round(self.base_bytes + larger * self.per_byte * weight_bytes), round(seconds, 1))


# Lines through two measurements: workers on the nano checkpoint (13 MB of weights) and on a full-size one ("The whole
# build" in docs/benchmarks.md). The full-size checkpoint is in float16, so its weights are converted in memory. Each
# line uses the most expensive precision. The decoder's lines are steep because of its activations, which are
# 512 × 512 pixels at full size.
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
# Beside the weights, a part of the graph and values of several cases ("Static int8 of ONNX" in docs/benchmarks.md); the
# text encoder and the decoder were measured with more, before ranges were measured in parts.
_STATIC_ONNX: Final[Mapping[str, Rate]] = {
    "text_encoder": Rate(530_000_000, 4.3, 10, 150),
    "unet": Rate(480_000_000, 2.4, 16, 125),
    "vae_decoder": Rate(430_000_000, 98.0, 6, 8000),
}
# Verification of all components of an export: two processes at a time, 4 golden cases, each case run twice. One run
# takes 40 s in our runtime for Core ML packages, 3 s in XNNPACK and 5 s in onnxruntime (docs/benchmarks.md).
_EXPORT: Final[Mapping[str, Rate]] = {
    "coreml": Rate(1_000_000_000, 1.2, 15, 60),
    "tflite": Rate(800_000_000, 1.6, 10, 15),
    "onnx": Rate(600_000_000, 1.6, 10, 25),
    "coreai": Rate(600_000_000, 3.0, 15, 400),
}
# One case through all components in torch, with one component in memory at a time (docs/benchmarks.md).
_CASE: Final = Rate(700_000_000, 1.0, 0.3, 12)
# Slowdown relative to storing floats. Measured on nano: 11.5 s for floats, 23.9 s for a palette, 21.0 s for static
# ranges.
_SLOWER: Final[Mapping[str, float]] = {"palette": 2.2, "int8_static": 2.0, "int16_static": 2.0, "gptq": 2.0, "mse": 1.5}

# Upper estimate of artifact bytes per byte of float32 weights, by stored type.
_SPACE: Final = {"float32": 1.1, "float16": 0.7}
_SPACE_OF_OTHERS: Final = 0.4


def space_of(scheme: QuantScheme, weight_bytes: int) -> int:
    """Estimate the size of an artifact in bytes from the size of its weights in float32."""
    return round(weight_bytes * _SPACE.get(scheme.weights, _SPACE_OF_OTHERS))


def artifact_cost(target: str, component: str, scheme: QuantScheme, weight_bytes: int, area: float = 1.0) -> Cost:
    """Predict the cost of making one artifact.

    An optional component costs as much as the required component that it accompanies.

    Args:
        weight_bytes: size of the component's weights in float32.
        area: area of the picture relative to the size that the checkpoint was trained for.
    """
    component = OPTIONAL_NAMES.get(whole_of(component), whole_of(component))
    words = (*scheme.all_weights, scheme.activations, scheme.rounding)
    slower = [times for word, times in _SLOWER.items() if any(one.startswith(word) for one in words)]
    # The model has no measurements of smaller pictures; in larger ones the decoder's activations grow with the area.
    area = max(1.0, area) if component == "vae_decoder" else 1.0
    if target == "onnx" and scheme.activations == "int8_static":
        return _STATIC_ONNX[component].cost(weight_bytes, area, area)
    return _ARTIFACT[target, component].cost(weight_bytes, area * max(slower, default=1.0), area)


def export_cost(target: str, weight_bytes: int, cases: int, area: float = 1.0) -> Cost:
    """Predict the cost of verifying an export on ``cases`` golden cases."""
    return _EXPORT[target].cost(weight_bytes, max(1.0, area) * max(1.0, cases / 4), max(1.0, area))


def cases_cost(weight_bytes: int, cases: int, area: float = 1.0) -> Cost:
    """Predict the cost of computing ``cases`` golden or calibration cases in torch; 0 cases means they are copied."""
    if cases == 0:
        return Cost(300_000_000, 8.0)
    found = _CASE.cost(weight_bytes, cases * max(1.0, area))
    return Cost(found.peak_bytes, found.seconds + 8)


class Measured:
    """Measured costs of steps in earlier builds, stored in ``folder`` by cost key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, cost_key: str, cost: Cost) -> None:
        """Record the measured cost of a step; replaces the previous measurement with the same key."""
        write_whole(self._folder / f"{cost_key}.json", json.dumps(asdict(cost)), keep_going=True)

    def cost(self, cost_key: str, predicted: Cost) -> Cost:
        """Return the recorded cost with the safety margin on memory, or ``predicted`` if none can be read."""
        try:
            found = from_json((self._folder / f"{cost_key}.json").read_text(encoding="utf-8"))
            return Cost(round(found["peak_bytes"] * _MARGIN), round(found["seconds"], 1))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return predicted
