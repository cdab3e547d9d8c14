"""The runtimes that execute a .tflite file on the CPU: two libraries, each with three sets of kernels."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from md_export.errors import MissingExtraError

THREADS: Final = 2
OWN: Final = "litert"


@dataclass(frozen=True)
class Runtime:
    """One library with one set of kernels.

    Attributes:
        name: as ``--runtime`` takes it.
        library: ``litert`` or ``tensorflow``.
        resolver: member of the library's ``OpResolverType``.
        kernels: what computes, in words.
    """

    name: str
    library: str
    resolver: str
    kernels: str

    def require(self) -> None:
        """Raise :class:`MissingExtraError` where the library is not installed. Imports nothing."""
        if self.library != OWN and importlib.util.find_spec(self.library) is None:
            raise MissingExtraError(
                f"the runtime {self.name} needs {self.library}, which is not installed: "
                f"pip install 'md-export[{self.library}]'"
            )

    def interpreter(self, path: Path) -> Any:
        """The library's interpreter of a file, tensors not yet allocated.

        Raises:
            MissingExtraError: the library is not installed.
            RuntimeError, ValueError: the library's own, on a file that it cannot read.
        """
        self.require()
        interpreter, resolvers = _tensorflow() if self.library == "tensorflow" else _litert()
        with warnings.catch_warnings():
            # TensorFlow announces that its interpreter will go; that apps ship it is why it is asked.
            warnings.simplefilter("ignore")
            return interpreter(
                model_path=str(path), num_threads=THREADS, experimental_op_resolver_type=resolvers[self.resolver]
            )


def _litert() -> tuple[Any, Any]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    return Interpreter, OpResolverType


def _tensorflow() -> tuple[Any, Any]:
    import tensorflow as tf

    return tf.lite.Interpreter, tf.lite.experimental.OpResolverType


# AUTO applies XNNPACK, as both libraries do where an app asks for nothing.
_KERNELS: Final = (
    ("", "AUTO", "XNNPACK"),
    ("-builtin", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "optimized, without XNNPACK"),
    ("-reference", "BUILTIN_REF", "reference"),
)
LIBRARIES: Final = (OWN, "tensorflow")
RUNTIMES: Final[Mapping[str, Runtime]] = {
    f"{library}{suffix}": Runtime(f"{library}{suffix}", library, resolver, kernels)
    for library in LIBRARIES
    for suffix, resolver, kernels in _KERNELS
}


def runtimes_of(library: str) -> tuple[Runtime, ...]:
    """All sets of kernels of one library, the one that apps get by default first."""
    return tuple(runtime for runtime in RUNTIMES.values() if runtime.library == library)
