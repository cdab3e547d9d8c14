"""What benchmarks/onnx_export.py does in its processes: conversion both ways, runs in onnxruntime."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from coreml_measure import Round, Subject
from md_export.engine.artifact import peak_resident_bytes
from md_export.models.families import COMPONENTS
from md_export.models.sampling.sampler import one_step
from md_export.parity.metrics import compare
from md_export.parity.rewritten_module import surface
from md_export.rewrites import Consent, apply_rewrites
from md_export.spec.artifact import bytes_of_artifact
from md_export.spec.calibration import RangeRule
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Array, select
from md_export.targets.contract import LoweringJob

__all__ = ("AGAINST", "OURS", "THEIRS", "Converted", "Round", "Subject", "convert", "partitions", "serve", "snr_db")

THREADS: Final = 2
THEIRS: Final = "optimum fp32"
OURS: Final = ("ours fp32", "ours fp16", "ours int8")
# What is compared: how many times faster the first is than the second.
AGAINST: Final = (("ours fp32", THEIRS), ("ours int8", "ours fp32"), ("ours int8", THEIRS))
# Sets of inputs that static int8 is calibrated on; none is the one that it is judged by.
CALIBRATION: Final = 4
MIN_MAX: Final = RangeRule()
# optimum-onnx 0.1.0: exporters/onnx/base.py and model_configs.py.
_OPSET: Final = 18
_BATCH: Final = {0: "batch_size"}
_IMAGE: Final = {0: "batch_size", 2: "height", 3: "width"}
_TEXT: Final = {0: "batch_size", 1: "sequence_length"}
_AXES: Final[dict[str, dict[str, dict[int, str]]]] = {
    "text_encoder": {"input_ids": _TEXT, "last_hidden_state": _TEXT},
    "unet": {"sample": _IMAGE, "timestep": {}, "encoder_hidden_states": _TEXT, "out_sample": _IMAGE},
    "vae_decoder": {"latent": _IMAGE, "image": _IMAGE},
}


@dataclass(frozen=True)
class Converted:
    """A file and what making it took. Peak: the most that the process ever held."""

    path: Path
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    nodes: int

    @property
    def bytes(self) -> int:
        """Of the file and its weights."""
        return bytes_of_artifact(self.path)


def convert(
    subject: Subject, form: str, folder: Path, rule: RangeRule = MIN_MAX, cases: int = CALIBRATION
) -> Converted:
    """Export into ``folder``; the clock sees what comes after the torch module is there."""
    torch.set_num_threads(THREADS)
    path = folder / f"{subject.component} {form}.onnx"
    job = dataclasses.replace(_job(subject, form, folder, cases), ranges=rule)
    wall, cpu = time.perf_counter(), time.process_time()
    if form == THEIRS:
        _optimum(job, path)
    else:
        _ours(job, path)
    spent = (time.perf_counter() - wall, time.process_time() - cpu)
    return Converted(path, *spent, peak_resident_bytes(), _nodes(path))


def _job(subject: Subject, form: str, folder: Path, cases: int) -> LoweringJob:
    name, config, module = subject.component, subject.config, subject.module()
    recipe = _recipe(form.split()[1])
    records = apply_rewrites(recipe.rewrites, name, module, one_step(config), Consent())
    inputs, outputs = surface(COMPONENTS[name], config, records)
    drawn = [select(subject.inputs(seed), inputs) for seed in range(1, 1 + cases)]
    return LoweringJob(name, module, inputs, outputs, drawn[0], recipe.schemes[name], tuple(drawn), folder)


def _recipe(precision: str) -> Recipe:
    return load_recipe(builtin_recipe("onnx", precision))


def _ours(job: LoweringJob, path: Path) -> None:
    from md_export.targets.onnx.lower import lower
    from md_export.targets.onnx.quantize import quantize
    from md_export.targets.onnx.save import save

    save(quantize(lower(job), job), path)


def _optimum(job: LoweringJob, path: Path) -> None:
    """The arguments that optimum's ``export_pytorch`` passes, and the look at the file that follows."""
    import onnx

    from md_export.targets.lowering import quiet

    axes = _AXES[job.component]
    dummy = {name: torch.from_numpy(value) for name, value in job.example.items()}
    with quiet(), torch.no_grad():
        torch.onnx.export(
            job.module,
            (dummy,),
            f=path.as_posix(),
            input_names=[spec.name for spec in job.inputs],
            output_names=[spec.name for spec in job.outputs],
            dynamic_axes={name: axes[name] for name in (spec.name for spec in (*job.inputs, *job.outputs))},
            do_constant_folding=True,
            opset_version=_OPSET,
            dynamo=False,
        )
    onnx.load(path.as_posix(), load_external_data=False)


def _nodes(path: Path) -> int:
    from md_export.targets.onnx.describe import read_graph

    return len(read_graph(path).graph.node)


def partitions(path: Path) -> str:
    """Core ML models that onnxruntime would make of it, and how many nodes it would leave to the CPU."""
    from mobile_usability import coreml_partitions

    found = coreml_partitions(path)
    return f"{found.count}, {len(found.left)} on the CPU" if found.left else str(found.count)


def _session(path: Path) -> Any:
    """As an app opens it, but threads sleep while they wait."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def serve(connection: Connection, subject: Subject, path: Path) -> None:
    """Run the file whenever asked."""
    session = _session(path)
    inputs = _given(session, subject)
    while connection.recv():
        wall, cpu = time.perf_counter(), time.process_time()
        session.run(None, inputs)
        connection.send(Round(time.perf_counter() - wall, time.process_time() - cpu, peak_resident_bytes()))


def _given(session: Any, subject: Subject) -> dict[str, Array]:
    drawn = subject.inputs()
    return {item.name: drawn[item.name] for item in session.get_inputs()}


def snr_db(subject: Subject, path: Path, expected: Path) -> tuple[float, float]:
    """Of a file's one output: in onnxruntime as it is, and with float16 results rounded."""
    from md_export.targets.onnx.run import load

    session, wanted = _session(path), np.load(expected)
    (plain,) = session.run(None, _given(session, subject))
    snr = compare(plain, wanted).snr_db
    dynamic = isinstance(session.get_inputs()[0].shape[0], str)
    del session
    if dynamic:  # our runner takes static shapes only, and such a file has no float16
        return snr, snr
    runner = load(path)
    (rounded,) = runner.run(select(subject.inputs(), runner.inputs)).values()
    return snr, compare(rounded, wanted).snr_db
