"""Let coremltools' own ``MLModel.predict`` run on this runtime, where Core ML itself is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from md_export.errors import RuntimeFault
from md_export.targets.coreml.mil.loading import load
from md_export.targets.coreml.mil.program import Precision, Program, State


@contextmanager
def patch_predict(precision: Precision = "storage") -> Iterator[None]:
    """Inside this context ``MLModel.predict`` and ``make_state`` execute ML programs with this runtime.

    A model is loaded at its first prediction and kept as long as the ``MLModel`` lives. What needs predictions of
    coremltools itself (calibration of activations, for instance) then works on Linux.

    Args:
        precision: as for :func:`load`.

    Raises:
        RuntimeFault: from ``predict``, for a model that is no saved ML program.
    """
    from coremltools.models import MLModel

    programs: WeakKeyDictionary[Any, Program] = WeakKeyDictionary()

    def program(model: Any) -> Program:
        if model not in programs:
            if not model.package_path:
                raise RuntimeFault("only ML programs can be executed, not neural networks")
            programs[model] = load(model.package_path, precision, model.function_name)
        return programs[model]

    def predict(model: Any, data: Any, state: State | None = None) -> Any:
        if isinstance(data, list):
            return [program(model).predict(item) for item in data]
        return program(model).predict(data, state=state)

    def make_state(model: Any) -> State:
        return program(model).make_state()

    saved = MLModel.predict, MLModel.make_state
    MLModel.predict, MLModel.make_state = predict, make_state
    try:
        yield
    finally:
        MLModel.predict, MLModel.make_state = saved
