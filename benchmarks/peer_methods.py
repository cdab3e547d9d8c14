"""Quantization by the vendors' own tools, through their public functions: a float artifact in, a small one out.

A method takes :class:`Source` and writes the file ``out``. Where a method needs calibration inputs it gets those that
our recipes get.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from md_export.spec.artifact import bytes_of_artifact
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Arrays
from md_export.system.vendors import replaced

FLOAT16: Final = 16
_FLOAT: Final = QuantScheme("float16", "float16")
# Apple's NBITS without 1 bit.
BITS: Final = (2, 4, 6, 8)
_LAYERS: Final = (nn.Linear, nn.Conv2d, nn.Embedding)
# Apple judges by eight prompts; two take a quarter of the time.
_CASES: Final = 2


@dataclass(frozen=True)
class Source:
    """What a peer's tool is given.

    Attributes:
        path: float artifact.
        module: the checkpoint's torch module, without rewrites.
        calibration: inputs by the names of the artifact's inputs.
        rival_bytes: size of our artifact that the peer's is compared with.
    """

    path: Path
    module: nn.Module
    calibration: Sequence[Arrays]
    rival_bytes: int


Method = Callable[[Source, Path], None]


# --- ai-edge-quantizer ---


def ai_edge(recipe: str, algorithm: str = "MIN_MAX_UNIFORM_QUANT") -> Method:
    """Return a recipe of ``ai_edge_quantizer.recipe`` on all operations that it takes, with one of its algorithms."""
    return partial(_ai_edge, recipe, algorithm)


def _ai_edge(recipe: str, algorithm: str, source: Source, out: Path) -> None:
    from ai_edge_quantizer import recipe as recipes
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.quantizer import Quantizer

    from md_export.targets.tflite.lower import SIGNATURE

    quantizer = Quantizer(str(source.path))
    quantizer.load_quantization_recipe(getattr(recipes, recipe)(algorithm_key=AlgorithmName[algorithm]))
    ranges = None
    if quantizer.need_calibration:
        for end in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):  # ours are float32, too
            quantizer.update_quantization_recipe(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
        ranges = quantizer.calibrate({SIGNATURE: [dict(case) for case in source.calibration]}, num_threads=1)
    quantizer.quantize(ranges, serialize_to_path=str(out), enable_progress_bar=False, enable_progress_report=False)


def ai_edge_algorithm(algorithm: str) -> AbstractContextManager[None]:
    """Our TFLite recipes round weights with one of ai-edge-quantizer's algorithms meanwhile."""
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.quantizer import Quantizer

    method = partialmethod(Quantizer.add_dynamic_config, algorithm_key=AlgorithmName[algorithm])
    return replaced(Quantizer, "add_dynamic_config", method)


# --- onnxruntime ---


def onnx_static(calibrator: str) -> Method:
    """Return ``quantize_static`` on all operations that it takes: a scale per channel, uint8 activations."""
    return partial(_onnx_static, calibrator)


def _onnx_static(calibrator: str, source: Source, out: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    quantize_static(
        str(source.path),
        str(out),
        _reader(source.calibration),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[calibrator],
    )


def onnx_calibrator(calibrator: str) -> AbstractContextManager[None]:
    """Our ONNX recipes take ranges from one of onnxruntime's calibrators meanwhile."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    from md_export.targets.onnx import qdq
    from md_export.targets.onnx.target import OnnxModel

    def measured(model: Any, config: Any, job: Any) -> Any:
        source, path = job.workdir / "float.onnx", str(job.workdir / "calibration.onnx")
        OnnxModel(model).save(source)
        made = create_calibrator(source, config.op_types_to_quantize, path, CalibrationMethod[calibrator])
        made.collect_data(_reader(job.calibration))
        return made.compute_data()

    return replaced(qdq, "measure_ranges", measured)


def _reader(cases: Sequence[Arrays]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._cases = iter(cases)

        def get_next(self) -> dict[str, Any] | None:
            case = next(self._cases, None)
            return None if case is None else dict(case)

    return Reader()


# --- coremltools, and Apple's way of choosing bits ---


def palettes(bits: int, group: int | None = None) -> Method:
    """Return k-means palettes of so many bits for every weight: a table each, or one for each group of channels."""
    return partial(_palettes, bits, group)


def _palettes(bits: int, group: int | None, source: Source, out: Path) -> None:
    from md_export.targets.coreml.vendor import cto

    _palettized(source.path, cto.OptimizationConfig(global_config=_palette(bits, group)), out)


def _palette(bits: int, group: int | None = None) -> Any:
    from md_export.targets.coreml.vendor import cto

    grouped = {"granularity": "per_grouped_channel", "group_size": group} if group else {}
    return cto.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=0, **grouped)


def _palettized(package: Path, config: Any, out: Path) -> None:
    from md_export.targets.coreml.vendor import ct, cto, quiet

    with quiet():
        cto.palettize_weights(ct.models.MLModel(str(package), skip_model_load=True), config).save(str(out))


def mixed_palettes(source: Source, out: Path) -> None:
    """Choose bits as Apple's mixed-bit palettization does, at the bytes of our artifact.

    As ``mixed_bit_compression_pre_analysis.py`` of github.com/apple/ml-stable-diffusion: for each number of bits the
    PSNR with one layer compressed, then the PSNR with one layer more at a time, the best first; each layer gets the
    fewest bits whose cumulative PSNR passes a threshold. Of the thresholds, the highest whose recipe is small enough.
    """
    from md_export.targets.coreml.vendor import cto

    names = {module: name for name, module, _ in _weights(source.path)}
    layers = {
        path: layer for path, layer in source.module.named_modules() if path in names and isinstance(layer, _LAYERS)
    }
    small = {bits: _decoded(bits, source, out, layers) for bits in BITS}
    cumulative = {bits: cumulative_psnr(layers, weights, _quality(source)) for bits, weights in small.items()}
    sizes = {path: layer.weight.numel() for path, layer in layers.items()}
    rest = bytes_of_artifact(source.path) - sum(2 * size for size in sizes.values())
    chosen = within(cumulative, sizes, source.rival_bytes - rest)
    configs = {names[path]: _palette(bits) for path, bits in chosen.items() if bits != FLOAT16}
    _palettized(source.path, cto.OptimizationConfig(op_name_configs=configs), out)


def _weights(package: Path) -> list[tuple[str, str, Any]]:
    """Name, module and values of each weight that is multiplied or looked up."""
    from md_export.targets.coreml.saved import stored_weights

    found = [one for one in stored_weights(package, _FLOAT) if one.values.ndim >= 2]
    used = [(one, use) for one in found for use in one.uses[:1] if use.role == "weight" and use.modules]
    return [(one.name, use.modules[0], one.values) for one, use in used]


def _decoded(bits: int, source: Source, out: Path, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Weights of all layers as palettes of so many bits make them."""
    package = out.with_name(f"{out.stem}-{bits}{out.suffix}")
    _palettes(bits, None, source, package)
    found = {module: torch.from_numpy(np.ascontiguousarray(values)) for _, module, values in _weights(package)}
    return {path: found[path].reshape(_weight(layer).shape) for path, layer in layers.items()}


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _quality(source: Source) -> Callable[[], float]:
    """Return what measures the module as it is: mean PSNR of its outputs in dB."""
    cases = [[torch.from_numpy(value) for value in case.values()] for case in source.calibration[:_CASES]]
    batch = [torch.cat(values) for values in zip(*cases, strict=True)]

    @torch.no_grad()
    def run() -> Tensor:
        made: Tensor = source.module(*batch)
        return made.flatten(1)

    wanted = run()

    def measured() -> float:
        error = (run() - wanted).square().mean(dim=1).clamp(min=1e-20)
        return float((20 * wanted.abs().amax(dim=1).log10() - 10 * error.log10()).mean())

    return measured


def cumulative_psnr(
    layers: Mapping[str, nn.Module], small: Mapping[str, Tensor], quality: Callable[[], float]
) -> dict[str, float]:
    """Return the PSNR after each layer has got its small weight, those first that lose least alone."""
    whole = {path: _weight(layer).data for path, layer in layers.items()}
    alone = {}
    for path, layer in layers.items():
        _weight(layer).data = small[path]
        alone[path] = quality()
        _weight(layer).data = whole[path]
    found = {}
    for path in sorted(layers, key=lambda path: -alone[path]):
        _weight(layers[path]).data = small[path]
        found[path] = quality()
    for path, layer in layers.items():
        _weight(layer).data = whole[path]
    return found


def within(cumulative: Mapping[int, Mapping[str, float]], sizes: Mapping[str, int], most_bytes: int) -> dict[str, int]:
    """Return bits by layer for the highest threshold whose palettes and tables take no more than ``most_bytes``."""
    thresholds = sorted({psnr for found in cumulative.values() for psnr in found.values()}, reverse=True)
    recipes = (
        {path: next((bits for bits in sorted(cumulative) if cumulative[bits][path] > least), FLOAT16) for path in sizes}
        for least in (*thresholds, -np.inf)
    )
    return next(
        (recipe for recipe in recipes if _stored(recipe, sizes) <= most_bytes),
        dict.fromkeys(sizes, min(cumulative)),
    )


def _stored(recipe: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    return sum(
        size * recipe[path] / 8 + (2 << recipe[path]) * (recipe[path] != FLOAT16) for path, size in sizes.items()
    )


@contextmanager
def silent() -> Iterator[None]:
    """Drop what the vendors print."""
    from md_export.targets.lowering import quiet

    with quiet(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
