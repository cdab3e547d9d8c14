"""Whether float16 can hold an operation's constants, asked a few megabytes at a time.

coremltools 9.0 (mil/passes/defs/quantization.py) makes an index array for each axis of a weight: five 64-bit numbers
for each float of a convolution, which is where converting took the most memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from md_export.targets.coreml.vendor import ct

_LARGEST: Final = 65504.0
# What coremltools takes for an infinity, which may become one of float16.
_INFINITE: Final = 1e38
_AT_A_TIME: Final = 1 << 20


@contextmanager
def lean_overflow_check() -> Iterator[None]:
    """Put :func:`overflows` into coremltools' place, for the duration."""
    owner: Any = ct.transform.FP16ComputePrecision
    before = owner.fp16_overflow
    owner.fp16_overflow = staticmethod(overflows)
    try:
        yield
    finally:
        owner.fp16_overflow = staticmethod(before)


def overflows(op: Any) -> bool:
    """Whether a float32 constant that ``op`` takes has values beyond float16's range, infinities apart."""
    given = [v for value in op.inputs.values() for v in (value if isinstance(value, (list, tuple)) else (value,))]
    constants = [v for v in given if v.op is not None and v.op.op_type == "const"]
    return any(_overflow(v.op.val.val) for v in constants if v.is_tensor_or_scalar_of(dtype="fp32"))


def _overflow(values: Any) -> bool:
    flat = np.asarray(values).reshape(-1)
    for start in range(0, flat.size, _AT_A_TIME):
        sizes = np.abs(flat[start : start + _AT_A_TIME])
        if bool(((sizes > _LARGEST) & (sizes < _INFINITE)).any()):
            return True
    return False
