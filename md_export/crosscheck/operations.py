"""The corpus through two targets in float16, beside float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from md_export.crosscheck.corpus import OPERATIONS, Operation
from md_export.errors import MdExportError, RuntimeFault
from md_export.parity.metrics import snr_db
from md_export.scheme import QuantScheme
from md_export.targets import TARGETS
from md_export.targets.trial import answer_of
from md_export.tensors import TensorSpec
from md_export.workers import call_worker

# Our runtime of Core ML programs, and Apple's of Core AI.
PAIR: Final = ("coreml", "coreai")
Floats = NDArray[np.float64]
_HALF: Final = QuantScheme("float16", "float16")


@dataclass(frozen=True)
class OperationRow:
    """One operation in both runtimes.

    Attributes:
        snr_db: of each runtime's answer against float64; None where it could not be had, see ``fault``.
        steps: largest distance of each from float64, in distances between neighbouring float16 values of such a
            magnitude, at least that of the root mean square.
        equal: share of the values on which both agree to the last bit of float16.
        apart: largest distance between the two, in the same unit.
    """

    name: str
    snr_db: tuple[float, float] | None = None
    steps: tuple[float, float] | None = None
    equal: float | None = None
    apart: float | None = None
    fault: str = ""


_ROWS = TypeAdapter(list[OperationRow])


def crosscheck_operations(progress: Callable[[str], None] = lambda _: None) -> list[OperationRow]:
    """The whole corpus, in a process of its own.

    Raises:
        MissingExtraError: the libraries of one of the two are not installed.
    """
    for target in PAIR:
        TARGETS[target].require()
    progress(f"{len(OPERATIONS)} operations by {' and '.join(PAIR)}")
    answer = call_worker("crosscheck_operations", {}, RuntimeFault, "the corpus of operations")
    return _ROWS.validate_python(answer["rows"])


def rows(names: Iterable[str] = ()) -> list[OperationRow]:
    """Of all operations, or of those named; runs inside a worker process."""
    wanted = frozenset(names)
    return [_row(item) for item in OPERATIONS if not wanted or item.name in wanted]


def _row(operation: Operation) -> OperationRow:
    with torch.no_grad():
        exact = operation.module().double()(*(value.double() for value in operation.inputs())).numpy()
    try:
        first, second = (answer(operation, target).astype(np.float64) for target in PAIR)
    except MdExportError as error:
        return OperationRow(operation.name, fault=str(error))
    return judged(operation.name, first, second, exact)


def judged(name: str, first: Floats, second: Floats, exact: Floats) -> OperationRow:
    """The row of two answers, float64 arrays of one shape each."""
    # A sum near zero has the error of its terms: no value is held to finer steps than those at the root mean square.
    magnitude = np.maximum(np.abs(exact), np.sqrt(np.mean(np.square(exact))))
    unit = np.spacing(magnitude.astype(np.float16)).astype(np.float64)

    def farthest(one: Floats, other: Floats) -> float:
        return float((np.abs(one - other) / unit).max())

    return OperationRow(
        name,
        snr_db=(snr_db(first, exact), snr_db(second, exact)),
        steps=(farthest(first, exact), farthest(second, exact)),
        equal=float((first.astype(np.float16) == second.astype(np.float16)).mean()),
        apart=farthest(first, second),
    )


def answer(operation: Operation, target: str) -> Any:
    """What a target's runtime makes of the operation's inputs, float32.

    Raises:
        MdExportError: it cannot be converted or does not run.
    """
    module, values, opened = operation.module(), operation.inputs(), TARGETS[target].open()
    given = {f"x{number}": value.numpy() for number, value in enumerate(values)}
    with torch.no_grad():
        shape = tuple(module(*values).shape)
    return answer_of(opened, TARGETS[target].suffix, module, given, TensorSpec("made", shape, "float32"), _HALF)
