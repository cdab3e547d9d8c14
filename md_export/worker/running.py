"""Tasks of a worker process: artifacts in their own runtimes, on the GPU engine and on the NPU's simulator.

Imports are inside, so that a task loads what it needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def execute(request: dict[str, Any]) -> dict[str, Any]:
    """Run one artifact on batches of inputs; outputs go to the named file, the answer is what was found inside."""
    import dataclasses

    from md_export.spec.runner import WatchedRunner
    from md_export.targets import TARGETS
    from md_export.targets.execution import load_batches, save_batches

    target = TARGETS[request["target"]].open()
    options = {} if request["runtime"] is None else {"runtime": request["runtime"]}
    runner = target.load(Path(request["path"]), **options)
    save_batches([runner.run(batch) for batch in load_batches(Path(request["inputs"]))], Path(request["outputs"]))
    hazards = runner.hazards() if isinstance(runner, WatchedRunner) else ()
    return {"found": dataclasses.asdict(target.describe(Path(request["path"]))), "hazards": list(hazards)}


def walk(request: dict[str, Any]) -> dict[str, Any]:
    """Take all steps of some pictures with a UNet's artifact, and a ControlNet's if named; latents go to a file."""
    from md_export.models.sampling.denoising import denoise
    from md_export.models.sampling.generate import only_output
    from md_export.spec.runner import WatchedRunner
    from md_export.spec.sampler import ddim_from_dict
    from md_export.targets import TARGETS
    from md_export.targets.execution import load_batches, save_batches

    paths = [Path(request[name]) for name in ("path", "control") if name in request]
    runner, *controls = (TARGETS[request["target"]].open().load(path) for path in paths)
    control = (lambda batches: [controls[0].run(batch) for batch in batches]) if controls else None
    starts, ddim = load_batches(Path(request["inputs"])), ddim_from_dict(request["ddim"])
    latents = denoise(lambda batches: [only_output(runner.run(batch)) for batch in batches], starts, ddim, control)
    save_batches([{"latent": latent} for latent in latents], Path(request["outputs"]))
    watched = [one for one in (runner, *controls) if isinstance(one, WatchedRunner)]
    return {"hazards": [line for one in watched for line in one.hazards()]}


def execute_on_gpu(request: dict[str, Any]) -> dict[str, Any]:
    """Run a .tflite file, or its first ops beside XNNPACK's answer, on LiteRT's GPU engine."""
    from md_export.targets.execution import load_batches, save_batches
    from md_export.targets.tflite.gpu.engine import run_on_gpu
    from md_export.targets.tflite.observe import write_prefix
    from md_export.targets.tflite.run import load

    path, batches = Path(request["path"]), load_batches(Path(request["inputs"]))
    if request["ops"] is not None:
        prefix = Path(request["outputs"]).with_name(path.name)
        if not write_prefix(path, request["ops"], prefix):
            return {"nothing": True}
        path, runner = prefix, load(prefix)
        save_batches([runner.run(batch) for batch in batches], Path(request["reference"]))
    run = run_on_gpu(path, batches)
    save_batches(run.outputs, Path(request["outputs"]))
    return {"resident": run.resident, "compile_seconds": run.compile_seconds, "run_seconds": run.run_seconds}


def compile_for_npu(request: dict[str, Any]) -> dict[str, Any]:
    """Compile an ONNX graph for a chip's NPU; answers with what the compiler took and refused."""
    import dataclasses

    from md_export.spec.snapdragon import Soc
    from md_export.targets.onnx.npu.context import compile_context

    soc = Soc(**request["soc"])
    return dataclasses.asdict(compile_context(Path(request["path"]), soc, Path(request["context"])))


def cut_for_npu(request: dict[str, Any]) -> dict[str, Any]:
    """Cut an ONNX graph into blocks between torch modules, each a file in the named folder; answers with them."""
    import dataclasses

    from md_export.targets.onnx.npu.cut import cut

    blocks = cut(Path(request["path"]), request["blocks"], Path(request["folder"]))
    return {"blocks": [dataclasses.asdict(block) for block in blocks]}


def execute_on_npu(request: dict[str, Any]) -> dict[str, Any]:
    """Run a compiled graph on batches of inputs in the NPU's simulator; outputs go to the named file."""
    from md_export.spec.snapdragon import Soc
    from md_export.targets.execution import load_batches, save_batches
    from md_export.targets.onnx.npu.context import check_context, run_on_npu

    soc, context = Soc(**request["soc"]), Path(request["context"])
    check_context(context, Path(request["path"]), soc)
    run = run_on_npu(context, soc, load_batches(Path(request["inputs"])))
    save_batches(run.outputs, Path(request["outputs"]))
    return {"load_seconds": run.load_seconds, "run_seconds": run.run_seconds}


def try_on_npu(request: dict[str, Any]) -> dict[str, Any]:
    """Run a graph on the CPU, compile it for a chip's NPU and run that; outputs of both go to the named files."""
    import dataclasses

    from md_export.spec.artifact import files_of_context
    from md_export.spec.snapdragon import Soc
    from md_export.targets.execution import load_batches, save_batches
    from md_export.targets.onnx.npu.context import compile_context, run_on_npu
    from md_export.targets.onnx.run import UNOPTIMIZED, load

    soc, path, batches = Soc(**request["soc"]), Path(request["path"]), load_batches(Path(request["inputs"]))
    exact = load(Path(request["exact"]), UNOPTIMIZED)
    save_batches([exact.run(batch) for batch in batches], Path(request["wanted"]))
    context = Path(request["folder"]) / path.name
    compiled = compile_context(path, soc, context)
    if compiled.refused:
        return dataclasses.asdict(compiled)
    run = run_on_npu(context, soc, batches)
    save_batches(run.outputs, Path(request["outputs"]))
    size = sum(file.stat().st_size for file in files_of_context(context))
    return dataclasses.asdict(compiled) | {"bytes": size, "run_seconds": run.run_seconds}


def canary(request: dict[str, Any]) -> dict[str, Any]:
    """Convert and run a module of a few ops on one target; answers with how well it computes."""
    from md_export.diagnose.doctor.canary import fly_in_worker

    return fly_in_worker(request["target"])
