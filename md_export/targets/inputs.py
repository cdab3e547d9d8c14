"""What a runner is given, held against what its artifact declares; every runner's first step."""

from __future__ import annotations

from md_export.errors import RuntimeFault
from md_export.spec.tensors import Arrays, TensorSpec


def check_inputs(name: str, specs: tuple[TensorSpec, ...], inputs: Arrays) -> None:
    """Raise :class:`RuntimeFault`, naming the artifact, if names, shapes or dtypes are not those of ``specs``."""
    wanted = {spec.name for spec in specs}
    if set(inputs) != wanted:
        raise RuntimeFault(f"{name} takes {', '.join(sorted(wanted))}; it was given {', '.join(sorted(inputs))}")
    for spec in specs:
        value = inputs[spec.name]
        if value.shape != spec.shape or value.dtype.name != spec.dtype:
            raise RuntimeFault(
                f"{name}: {spec.name} must be {spec.dtype}{list(spec.shape)}, not {value.dtype.name}{list(value.shape)}"
            )
