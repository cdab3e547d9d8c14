"""Tasks of a worker process: what is said of artifacts: advice, costs, proofs, and what goes wrong where.

Imports are inside, so that a task loads what it needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def costs(request: dict[str, Any]) -> dict[str, Any]:
    """Tell what each operation of one artifact computes and moves; nothing is run."""
    import dataclasses

    from md_export.errors import UsageError
    from md_export.targets import TARGETS
    from md_export.targets.contract import CountsCosts

    target = TARGETS[request["target"]].open()
    if not isinstance(target, CountsCosts):
        raise UsageError(f"an estimate reads no {target.suffix} file")
    return {"ops": [dataclasses.asdict(op) for op in target.costs(Path(request["path"]))]}


def audit(request: dict[str, Any]) -> dict[str, Any]:
    """Hold every weight that one artifact stores against the checkpoint; answers with what was found."""
    import dataclasses

    from md_export.parity.weights.audit import audit_in_worker

    found = audit_in_worker(Path(request["out"]), Path(request["checkpoint"]), request["component"])
    return dataclasses.asdict(found)


def self_test(request: dict[str, Any]) -> dict[str, Any]:
    """Damage copies of an export and see which check of the gate notices; answers with one row for each try."""
    from md_export.parity.selftest.command import rows_in_worker

    return {"rows": rows_in_worker(Path(request["out"]), Path(request["checkpoint"]))}


def attribute(request: dict[str, Any]) -> dict[str, Any]:
    """Follow one artifact module by module; answers with what was found, without hops."""
    import dataclasses

    from md_export.diagnose.attribution.attribute import blame_in_worker

    found = blame_in_worker(Path(request["out"]), request["component"], Path(request["checkpoint"]))
    return dataclasses.asdict(found)


def rewritten(request: dict[str, Any]) -> dict[str, Any]:
    """Hold a component's torch module, rewritten as it was lowered, against the golden outputs of some cases."""
    from md_export.diagnose.attribution.attribute import rewritten_in_worker

    folders = Path(request["out"]), Path(request["checkpoint"])
    return {"snr_db": rewritten_in_worker(folders[0], request["component"], folders[1], request["cases"])}


def contract(request: dict[str, Any]) -> dict[str, Any]:
    """Hold an export in the Swift layout against what Apple's Swift package reads; answers with the faults."""
    from md_export.engine.swift_bundle import faults

    return {"faults": faults(Path(request["folder"]), tuple(request["packages"]))}


def crosscheck(request: dict[str, Any]) -> dict[str, Any]:
    """Hold two artifacts of one component against each other; answers with what was found."""
    import dataclasses

    from md_export.diagnose.crosscheck.artifacts import crosscheck_in_worker

    paths = [Path(request[name]) for name in ("first", "second", "checkpoint")]
    return dataclasses.asdict(crosscheck_in_worker(*paths))


def crosscheck_operations(_request: dict[str, Any]) -> dict[str, Any]:
    """Run a corpus of single operations on two targets; answers with one row for each."""
    import dataclasses

    from md_export.diagnose.crosscheck.operations import rows

    return {"rows": [dataclasses.asdict(row) for row in rows()]}
