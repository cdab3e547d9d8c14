"""From a saved ``.mlpackage`` to a program, also behind coremltools' own ``MLModel.predict``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pydantic_core import from_json

from md_export.errors import RuntimeFault, raised_as
from md_export.mil.graph import parse_function
from md_export.mil.program import Precision, Program, State, features
from md_export.mil.values import BlobFile, Value, decode
from md_export.system.vendors import import_quietly

_MODEL_PATH = "@model_path/"
# Elements of a constant up to which a second copy does not matter.
_SMALL = 1 << 18


class Package:
    """A saved ML program on disk.

    Attributes:
        spec: the parsed ``Model_pb2.Model``.
        default: name of the function that is executed unless another is asked for.
    """

    def __init__(self, path: Path) -> None:
        """Read the manifest and the specification; the weights stay on disk.

        Raises:
            RuntimeFault: ``path`` is no ``.mlpackage`` with an ML program in it.
            MissingExtraError: coremltools, which has the format's protobuf messages, is not installed.
        """
        model = _root_model(path)
        self.spec: Any = import_quietly("coremltools.proto.Model_pb2", "mil").Model()
        from google.protobuf.message import DecodeError

        what, then = f"{path}: the specification cannot be read", "; convert the model again"
        with raised_as(RuntimeFault, what, (OSError, DecodeError), then):
            self.spec.ParseFromString(model.read_bytes())
        if self.spec.WhichOneof("Type") != "mlProgram":
            raise RuntimeFault(f"{path} holds a {self.spec.WhichOneof('Type')}, not an mlProgram")
        self.default = self.spec.description.defaultFunctionName or "main"
        self._path, self._folder = path, model.parent
        self._files: dict[str, BlobFile] = {}

    def function(self, name: str | None = None) -> Any:
        """The ``MIL_pb2.Function`` of that name, or the default one.

        Raises:
            RuntimeFault: the package has none of that name.
        """
        functions, name = self.spec.mlProgram.functions, name or self.default
        if name not in functions:
            raise RuntimeFault(f"{self._path} has no function {name}; it has {', '.join(sorted(functions))}")
        return functions[name]

    def weights(self, name: str) -> BlobFile:
        """The weight file that the program calls ``name`` (``@model_path/…``), mapped once.

        Raises:
            RuntimeFault: the name leaves the package, or there is no such weight file.
        """
        if name not in self._files:
            path = (self._folder / name.removeprefix(_MODEL_PATH)).resolve()
            if not name.startswith(_MODEL_PATH) or not path.is_relative_to(self._folder.resolve()):
                raise RuntimeFault(f"the program refers to weights outside its package: {name}")
            self._files[name] = BlobFile(path)
        return self._files[name]


def _root_model(path: Path) -> Path:
    try:
        manifest = from_json((path / "Manifest.json").read_text())
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RuntimeFault(f"{path} is no .mlpackage (its Manifest.json names no model): {error!r}") from error
    return path / "Data" / str(entry)


def load(path: Path | str, precision: Precision = "storage", function: str | None = None) -> Program:
    """Open a saved ``.mlpackage``; the weights stay mapped, not read.

    Args:
        path: the package.
        precision: ``storage`` rounds every op's result to its declared type and accumulates in float32;
            ``float32`` keeps what is declared float16 in float32.
        function: of a package with several; its default function if not given.

    Raises:
        RuntimeFault: no such package, or a program with something this runtime does not know; says which op.
    """
    package = Package(Path(path))
    description = package.spec.description
    name = function or package.default
    surface = next((item for item in description.functions if item.name == name), description)
    graph = parse_function(package.function(name), _reader(package, precision))
    return Program(graph, features(surface.input), features(surface.output), precision)


def _reader(package: Package, precision: Precision) -> Callable[[Any], Value]:
    """Decodes constants; for ``float32`` the small ones are widened too, so that they widen what they scale."""

    def read(proto: Any) -> Value:
        value = decode(proto, package.weights)
        if precision == "float32" and isinstance(value, torch.Tensor) and value.dtype == torch.float16:
            return value.float() if value.numel() <= _SMALL else value
        return value

    return read


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
