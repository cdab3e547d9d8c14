"""The MD UNet as a Core ML program in three forms: naive, Apple's (1×1 convolutions, one einsum per head), ours.

    python benchmarks/coreml_forms.py [--full] [FORM ...]

Random weights, float16. By default narrow channels at the full number of layers, which gives the op counts of the
full size in seconds; --full takes the 386 M parameters themselves. A process per form, so that none sees another's
memory. SNR is that of the program, executed by our runtime, against the untouched torch module.
"""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from md_export.arch import arch_config
from md_export.components import COMPONENTS, ModelConfig
from md_export.components.unet import MDUNet, MDUNetConfig
from md_export.parity.metrics import compare
from md_export.parity.prepare import one_step
from md_export.recipe import QuantScheme
from md_export.rewrites import REWRITES, Consent, apply_rewrites
from md_export.targets.contract import LoweringJob

_CHANNEL_FIRST: Final = ("linear_to_conv2d", "group_norm_to_instance_norm")
FORMS: Final[dict[str, tuple[str, ...]]] = {
    "naive": (),
    "apple": ("linear_to_conv2d", "split_attention_heads"),
    "ours, any timestep": _CHANNEL_FIRST,
    "ours": (*_CHANNEL_FIRST, "fold_timestep", "fold_attention_scale"),
}
HEADER: Final = "| form | ops | transposes | rank 5 | convert s | run s | peak GB | SNR dB | most frequent |"


@dataclasses.dataclass(frozen=True)
class Row:
    """Figures of one form."""

    kinds: collections.Counter[str]
    rank5: int
    convert_s: float
    run_s: float
    snr_db: float
    peak_bytes: int

    def cells(self, form: str) -> str:
        """One row of the Markdown table."""
        often = ", ".join(f"{kind} {count}" for kind, count in self.kinds.most_common(6))
        figures = (self.kinds.total(), self.kinds["transpose"], self.rank5)
        measured = (
            f"{self.convert_s:.1f}",
            f"{self.run_s:.2f}",
            f"{self.peak_bytes / 2**30:.2f}",
            f"{self.snr_db:.1f}",
        )
        return f"| {' | '.join((form, *map(str, figures), *measured, often))} |"


def config_of(full: bool) -> ModelConfig:
    """MD, or MD at a tenth of its width; the heads are as many."""
    config = arch_config("md")
    if full:
        return config
    unet = MDUNetConfig(
        sample_size=16,
        block_out_channels=(32, 80, 128),
        cross_attention_dim=96,
        attention_head_dim=8,
        norm_num_groups=16,
        time_embed_dim=128,
    )
    return dataclasses.replace(config, unet=unet, text_encoder={**config.text_encoder, "hidden_size": 96})


def subject(config: ModelConfig) -> MDUNet:
    """Random weights; the norms' affines too, which a trained model has and a fresh one lacks."""
    torch.manual_seed(0)
    unet = MDUNet(config.unet).eval().requires_grad_(False)
    for layer in unet.modules():
        if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
            nn.init.normal_(layer.weight, 1.0, 0.1)
            nn.init.normal_(layer.bias, 0.0, 0.1)
    return unet


def measure(form: str, full: bool) -> Row:
    """Rewrite, convert, execute."""
    torch.set_num_threads(1)
    config, names = config_of(full), FORMS[form]
    unet, rng = subject(config), np.random.default_rng(0)
    specs = COMPONENTS["unet"].inputs(config)
    given = {spec.name: rng.standard_normal(spec.shape, dtype=np.float32) for spec in specs}
    given["timestep"] = np.full((1,), config.schedule.last_timestep, np.float32)
    with torch.inference_mode():
        expected = unet(*(torch.from_numpy(array) for array in given.values())).numpy()
    apply_rewrites(names, "unet", unet, one_step(config), Consent())
    inputs = tuple(spec for spec in specs if not any(spec.name in REWRITES[name].drops for name in names))
    arrays = {spec.name: given[spec.name] for spec in inputs}
    with tempfile.TemporaryDirectory() as scratch:
        scheme = QuantScheme("float16", "float16")
        outputs = COMPONENTS["unet"].outputs(config)
        job = LoweringJob("unet", unet, inputs, outputs, arrays, scheme, (), Path(scratch))
        return _lowered(job, expected)


def _lowered(job: LoweringJob, expected: np.ndarray) -> Row:
    from md_export.targets.coreml import mil
    from md_export.targets.coreml.lower import lower
    from md_export.targets.coreml.package import main_operations, read_spec

    started = time.perf_counter()
    package = lower(job).package
    convert_s = time.perf_counter() - started
    # Of the conversion: the runtime's memory is measured elsewhere.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    operations = [op for op in main_operations(read_spec(package)) if op.type != "const"]
    program = mil.load(package)
    started = time.perf_counter()
    (out,) = program.predict(dict(job.example)).values()
    run_s = time.perf_counter() - started
    rank5 = sum(_rank(output) >= 5 for op in operations for output in op.outputs)
    kinds = collections.Counter(str(op.type) for op in operations)
    return Row(kinds, rank5, convert_s, run_s, compare(out, expected).snr_db, peak)


def _rank(output: Any) -> int:
    return len(output.type.tensorType.dimensions)


def main(forms: list[str], full: bool) -> None:
    """Print the table."""
    print(HEADER)
    print("|---" + "|---:" * (HEADER.count("|") - 3) + "|---|")
    for form in forms or FORMS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(measure, (form, full)).cells(form), flush=True)


if __name__ == "__main__":
    main([argument for argument in sys.argv[1:] if argument != "--full"], "--full" in sys.argv)
