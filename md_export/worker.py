"""The inside of a worker process: ``python -m md_export.worker TASK FOLDER``; see :mod:`md_export.workers`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from md_export.errors import MdExportError
from md_export.orphans import end_with_parent


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Make one artifact; answers with its manifest entry."""
    from md_export.artifact import entry_to_dict
    from md_export.build import BuildStep, build_component

    return entry_to_dict(build_component(BuildStep.from_dict(request)))


def execute(request: dict[str, Any]) -> dict[str, Any]:
    """Run one artifact on batches of inputs; outputs go to the named file, the answer is what was found inside."""
    import dataclasses

    from md_export.executing import load_batches, save_batches
    from md_export.targets import TARGETS
    from md_export.targets.contract import WatchedRunner

    target = TARGETS[request["target"]].open()
    options = {} if request["runtime"] is None else {"runtime": request["runtime"]}
    runner = target.load(Path(request["path"]), **options)
    save_batches([runner.run(batch) for batch in load_batches(Path(request["inputs"]))], Path(request["outputs"]))
    hazards = runner.hazards() if isinstance(runner, WatchedRunner) else ()
    return {"found": dataclasses.asdict(target.describe(Path(request["path"]))), "hazards": list(hazards)}


def walk(request: dict[str, Any]) -> dict[str, Any]:
    """Take all steps of some pictures with a UNet's artifact, and a ControlNet's if named; latents go to a file."""
    from md_export.denoising import denoise
    from md_export.executing import load_batches, save_batches
    from md_export.sampler import ddim_from_dict
    from md_export.sampling import only_output
    from md_export.targets import TARGETS
    from md_export.targets.contract import WatchedRunner

    paths = [Path(request[name]) for name in ("path", "control") if name in request]
    runner, *controls = (TARGETS[request["target"]].open().load(path) for path in paths)
    control = (lambda batches: [controls[0].run(batch) for batch in batches]) if controls else None
    starts, ddim = load_batches(Path(request["inputs"])), ddim_from_dict(request["ddim"])
    latents = denoise(lambda batches: [only_output(runner.run(batch)) for batch in batches], starts, ddim, control)
    save_batches([{"latent": latent} for latent in latents], Path(request["outputs"]))
    watched = [one for one in (runner, *controls) if isinstance(one, WatchedRunner)]
    return {"hazards": [line for one in watched for line in one.hazards()]}


def lint(request: dict[str, Any]) -> dict[str, Any]:
    """Advise on one artifact; with inputs, run it and answer with float16 hazards too."""
    import dataclasses

    from md_export.executing import load_batches
    from md_export.targets import TARGETS

    target = TARGETS[request["target"]].open()
    batches = load_batches(Path(request["inputs"])) if request["inputs"] else []
    return dataclasses.asdict(target.lint(Path(request["path"]), request["system"], batches))


def costs(request: dict[str, Any]) -> dict[str, Any]:
    """Tell what each operation of one artifact computes and moves; nothing is run."""
    import dataclasses

    from md_export.targets import TARGETS

    found = TARGETS[request["target"]].open().costs(Path(request["path"]))
    return {"ops": [dataclasses.asdict(op) for op in found]}


def audit(request: dict[str, Any]) -> dict[str, Any]:
    """Hold every weight that one artifact stores against the checkpoint; answers with what was found."""
    import dataclasses

    from md_export.parity.stored.audit import audit_in_worker

    found = audit_in_worker(Path(request["out"]), Path(request["checkpoint"]), request["component"])
    return dataclasses.asdict(found)


def self_test(request: dict[str, Any]) -> dict[str, Any]:
    """Damage copies of an export and see which check of the gate notices; answers with one row for each try."""
    from md_export.parity.selftest.command import rows_in_worker

    return {"rows": rows_in_worker(Path(request["out"]), Path(request["checkpoint"]))}


def attribute(request: dict[str, Any]) -> dict[str, Any]:
    """Follow one artifact module by module; answers with what was found, without hops."""
    import dataclasses

    from md_export.parity.modules.blame import blame_in_worker

    found = blame_in_worker(Path(request["out"]), request["component"], Path(request["checkpoint"]))
    return dataclasses.asdict(found)


def rewritten(request: dict[str, Any]) -> dict[str, Any]:
    """Hold a component's torch module, rewritten as it was lowered, against the golden outputs of some cases."""
    from md_export.parity.modules.blame import rewritten_in_worker

    folders = Path(request["out"]), Path(request["checkpoint"])
    return {"snr_db": rewritten_in_worker(folders[0], request["component"], folders[1], request["cases"])}


def contract(request: dict[str, Any]) -> dict[str, Any]:
    """Hold an export in the Swift layout against what Apple's Swift package reads; answers with the faults."""
    from md_export.swift.contract import faults

    return {"faults": faults(Path(request["folder"]), tuple(request["packages"]))}


def execute_on_gpu(request: dict[str, Any]) -> dict[str, Any]:
    """Run a .tflite file, or its first ops beside XNNPACK's answer, on LiteRT's GPU engine."""
    from md_export.executing import load_batches, save_batches
    from md_export.targets.tflite.gpu.engine import run_on_gpu
    from md_export.targets.tflite.gpu.prefix import write_prefix
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

    from md_export.socs import Soc
    from md_export.targets.onnx.npu.context import compile_context

    soc = Soc(**request["soc"])
    return dataclasses.asdict(compile_context(Path(request["path"]), soc, Path(request["context"])))


def execute_on_npu(request: dict[str, Any]) -> dict[str, Any]:
    """Run a compiled graph on batches of inputs in the NPU's simulator; outputs go to the named file."""
    from md_export.executing import load_batches, save_batches
    from md_export.socs import Soc
    from md_export.targets.onnx.npu.context import check_context
    from md_export.targets.onnx.npu.engine import run_on_npu

    soc, context = Soc(**request["soc"]), Path(request["context"])
    check_context(context, Path(request["path"]), soc)
    run = run_on_npu(context, soc, load_batches(Path(request["inputs"])))
    save_batches(run.outputs, Path(request["outputs"]))
    return {"load_seconds": run.load_seconds, "run_seconds": run.run_seconds}


def cut_for_npu(request: dict[str, Any]) -> dict[str, Any]:
    """Cut an ONNX graph into blocks between torch modules, each a file in the named folder; answers with them."""
    import dataclasses

    from md_export.targets.onnx.npu.cut import cut

    blocks = cut(Path(request["path"]), request["blocks"], Path(request["folder"]))
    return {"blocks": [dataclasses.asdict(block) for block in blocks]}


def try_on_npu(request: dict[str, Any]) -> dict[str, Any]:
    """Run a graph on the CPU, compile it for a chip's NPU and run that; outputs of both go to the named files."""
    import dataclasses

    from md_export.artifact import files_of_context
    from md_export.executing import load_batches, save_batches
    from md_export.socs import Soc
    from md_export.targets.onnx.npu.context import compile_context
    from md_export.targets.onnx.npu.engine import run_on_npu
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


def plan(request: dict[str, Any]) -> dict[str, Any]:
    """All steps that lead to the exports of some recipes, each with its key in the cache."""
    from md_export.matrix.planning import plan_in_worker

    return plan_in_worker(request)


def step(request: dict[str, Any]) -> dict[str, Any]:
    """One step of a plan: files go to the request's folder, the answer is what else is to be kept."""
    from md_export.matrix.inside import step_in_worker

    return step_in_worker(request)


def join(request: dict[str, Any]) -> dict[str, Any]:
    """Make one Core ML package of several, a function each."""
    import tempfile

    from md_export.targets.coreml.functions import join

    path = Path(request["path"])
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as scratch:
        join({name: Path(package) for name, package in request["packages"].items()}, path, Path(scratch))
    return {}


def split(request: dict[str, Any]) -> dict[str, Any]:
    """Write one function of a Core ML package as a package of its own; answers with what is found inside."""
    from md_export.targets.coreml.describe import describe
    from md_export.targets.coreml.functions import split

    split(Path(request["package"]), request["function"], Path(request["path"]))
    found = describe(Path(request["path"]))
    return {"stored": found.stored, "ops": found.ops}


def canary(request: dict[str, Any]) -> dict[str, Any]:
    """Convert and run a module of a few ops on one target; answers with how well it computes."""
    from md_export.doctor.canary import fly_in_worker

    return fly_in_worker(request["target"])


def crosscheck(request: dict[str, Any]) -> dict[str, Any]:
    """Hold two artifacts of one component against each other; answers with what was found."""
    import dataclasses

    from md_export.crosscheck.artifacts import crosscheck_in_worker

    paths = [Path(request[name]) for name in ("first", "second", "checkpoint")]
    return dataclasses.asdict(crosscheck_in_worker(*paths))


def crosscheck_operations(_request: dict[str, Any]) -> dict[str, Any]:
    """Run a corpus of single operations on two targets; answers with one row for each."""
    import dataclasses

    from md_export.crosscheck.operations import rows

    return {"rows": [dataclasses.asdict(row) for row in rows()]}


TASKS: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "attribute": attribute,
    "audit": audit,
    "build": build,
    "canary": canary,
    "crosscheck": crosscheck,
    "crosscheck_operations": crosscheck_operations,
    "execute": execute,
    "join": join,
    "split": split,
    "cut_for_npu": cut_for_npu,
    "execute_on_gpu": execute_on_gpu,
    "execute_on_npu": execute_on_npu,
    "lint": lint,
    "plan": plan,
    "step": step,
    "self_test": self_test,
    "compile_for_npu": compile_for_npu,
    "try_on_npu": try_on_npu,
    "contract": contract,
    "costs": costs,
    "rewritten": rewritten,
    "walk": walk,
}


def main(task: str, folder: Path) -> None:
    """Answer one request. Errors of our own travel back as data; anything else is a crash with its traceback."""
    end_with_parent()
    (folder / "pid").write_text(str(os.getpid()), encoding="utf-8")
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        answer = TASKS[task](request)
    except MdExportError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
