"""The contract of targets: a job comes in, a saved artifact goes out, a runner executes it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, Self, runtime_checkable

from md_export.errors import MissingExtraError
from md_export.spec.artifact import ArtifactEntry
from md_export.spec.calibration import RangeRule
from md_export.spec.recipe import QuantScheme
from md_export.spec.scheme import WeightStorage
from md_export.spec.tensors import Array, Arrays, Runner, TensorSpec
from md_export.targets.lint.report import LintReport
from md_export.targets.operations import ExplorerGraph, OpCost
from md_export.targets.stored import Constant, StoredWeight
from md_export.targets.stored_graph import EditableGraph, StoredGraph

if TYPE_CHECKING:
    from torch import nn

# Name of the entry that holds all notes as JSON, where a format has named blobs; prefix of each where it has pairs.
METADATA: Final = "md_export"
_PREFIX: Final = f"{METADATA}."


@dataclass(frozen=True)
class LoweringJob:
    """One component to lower.

    Attributes:
        component: name in COMPONENTS.
        module: rewritten torch module in eval mode, float32; positional inputs in the order of ``inputs``,
            a single tensor out, or a tuple in the order of ``outputs``.
        inputs: named inputs of the artifact, float32 or int32 at its surface whatever the scheme.
        outputs: named outputs of the artifact, float32 at its surface.
        example: one golden input per name, for tracing.
        scheme: requested storage and arithmetic.
        calibration: inputs of this component as the runner will get them, each read when it is asked for.
        ranges: how ranges of activations follow from what calibration shows.
        npu: the artifact is for phones' NPUs: static ranges are for every operation, as those compute.
        workdir: scratch folder, removed afterwards.
        deployment_target: oldest system that must load a Core ML package; None for the target's own choice.
        notes: what an app must know; :func:`describe` reads it back from the artifact's own metadata.
    """

    component: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Arrays
    scheme: QuantScheme
    calibration: Sequence[Arrays]
    workdir: Path
    deployment_target: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    ranges: RangeRule = field(default_factory=RangeRule)
    npu: bool = False


@dataclass(frozen=True)
class Description:
    """Contents of a saved artifact, read from its own bytes.

    Attributes:
        stored: bytes of stored weights by dtype (``float32``, ``float16``, ``int8``, …).
        ops: number of ops by kind.
        float_weights: weights of convolutions, linears and embeddings that are stored in float, by module path.
        int8_weights: how many of those are stored in int8.
        not_finite: stored weights that hold NaN or Inf, which integer arithmetic may hide from every output.
        int8_inputs: share of the convolutions and linears that take int8 activations; None where the target does not
            tell.
        notes: the job's, as they are written in the artifact; empty where it has none.
    """

    stored: dict[str, int]
    ops: dict[str, int]
    float_weights: tuple[str, ...] = ()
    int8_weights: int = 0
    not_finite: tuple[str, ...] = ()
    int8_inputs: float | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


class Lowered(Protocol):
    """A component as the vendor's own model, between :meth:`Target.lower` and the saved artifact."""

    def quantize(self, job: LoweringJob) -> Lowered:
        """Apply ``job.scheme``; returns the model itself where the scheme needs nothing more."""
        ...

    def save(self, path: Path) -> None:
        """Write the artifact at ``path`` (which does not exist), the same bytes for the same inputs."""
        ...


class Saved(Protocol):
    """A target's module of what can be done with a saved artifact; :class:`Target` describes each function."""

    def describe(self, path: Path) -> Description:
        """See :meth:`Target.describe`."""

    def load(self, path: Path, runtime: str | None = None) -> Runner:
        """See :meth:`Target.load`."""

    def edit(self, path: Path) -> AbstractContextManager[list[Constant]]:
        """See :meth:`Target.edit`."""

    def store_as_float(self, path: Path) -> bool:
        """See :meth:`Target.store_as_float`."""

    def graph(self, path: Path) -> StoredGraph:
        """See :meth:`Target.graph`."""

    def edit_graph(self, path: Path) -> AbstractContextManager[EditableGraph]:
        """See :meth:`Target.edit_graph`."""

    def values(self, path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
        """See :meth:`Target.values`."""

    def stored_weights(self, path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:
        """See :meth:`Target.stored_weights`."""


class Target(Protocol):
    """One artifact format. Each method imports its module, and the vendor's libraries with it, when it is called.

    Attributes:
        name: command, folder and extra.
        suffix: ending of an artifact's name.
        requires: importable modules of the vendor.
        preload: modules that every lowering imports, for its worker to find them imported.
        distributions: packages whose versions the manifest records.
        title: format and runtime in words.
        system: machine that the vendor's libraries need; empty where they run on any.
        as_written: name of a second runtime, for :meth:`load`, that executes a graph as it is written, where the usual
            one optimizes it first; None where the usual one executes it so.
        forms: endings of artifacts of another form than the usual one, by the name that recipes give to the form.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    preload: ClassVar[tuple[str, ...]]
    distributions: ClassVar[tuple[str, ...]]
    title: ClassVar[str]
    system: ClassVar[str] = ""
    as_written: ClassVar[str | None] = None
    forms: ClassVar[Mapping[str, str]] = {}

    def require(self) -> None:
        """Raise :class:`MissingExtraError` where a library of the vendor is not installed. Imports nothing."""
        for module in self.requires:
            if importlib.util.find_spec(module) is None:
                system = f" (on {self.system})" if self.system else ""
                raise MissingExtraError(
                    f"the {self.name} target needs {module}, which is not installed: "
                    f"pip install 'md-export[{self.name}]'{system}"
                )

    def open(self) -> Self:
        """This target, its vendor's libraries being installed.

        Raises:
            MissingExtraError: a library of the vendor is not installed.
        """
        self.require()
        return self

    def saved(self) -> Saved:
        """The target's functions of saved artifacts, imported with the vendor's runtime and without its converter."""
        ...

    def lower(self, job: LoweringJob) -> Lowered:
        """Torch module → the vendor's float model. ConversionError where the converter fails."""
        ...

    def weight_storage(self, path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
        """How :meth:`Lowered.quantize` stores the weight of a torch module by the module's own scheme; None: float."""
        ...

    def describe(self, path: Path) -> Description:
        """Read ops and stored types from a saved artifact."""
        return self.saved().describe(path)

    def load(self, path: Path, runtime: str | None = None) -> Runner:
        """Open a saved artifact, ``runtime`` naming another than the target's own.

        RuntimeFault where the file is no such artifact.
        """
        return self.saved().load(path, runtime)

    def edit(self, path: Path) -> AbstractContextManager[list[Constant]]:
        """Open the constants of a saved artifact for change, in order of use; saved at the end. For the self-test."""
        return self.saved().edit(path)

    def store_as_float(self, path: Path) -> bool:
        """Rewrite compressed weights of a saved artifact as float ones; False where none is. For the self-test."""
        return self.saved().store_as_float(path)

    def edit_graph(self, path: Path) -> AbstractContextManager[EditableGraph]:
        """Open the operations of a saved artifact for change; saved at the end. For the self-test."""
        return self.saved().edit_graph(path)

    def graph(self, path: Path) -> StoredGraph:
        """The operations and constants of a saved artifact, nothing left out. RuntimeFault where it cannot be read."""
        return self.saved().graph(path)

    def values(self, path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
        """Execute a saved artifact once and keep the named values, in float32 and in the artifact's own layout.

        RuntimeFault where the runtime refuses the artifact or its inputs.
        """
        return self.saved().values(path, inputs, names)

    def stored_weights(self, path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:
        """Every constant of a saved artifact, decoded, one at a time; ``scheme`` says which were promised to be small.

        RuntimeFault or ArtifactError where it cannot be read.
        """
        return self.saved().stored_weights(path, scheme)

    def compile_contexts(
        self, names: Sequence[str], folder: Path, entries: tuple[ArtifactEntry, ...], progress: Callable[[str], None]
    ) -> tuple[ArtifactEntry, ...]:
        """Compile each artifact of an export in ``folder`` for each chip, by its name; the contexts lie beside them.

        ConversionError where a chip's compiler refuses an operation; MissingExtraError where no compiler is installed.
        """
        del names, folder, progress  # no NPU's compiler takes the artifacts of most targets
        return entries


@runtime_checkable
class Lints(Protocol):
    """A target that can advise on a saved artifact."""

    def lint(self, path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
        """Advice on a saved artifact for a system, with float16 hazards where inputs are given.

        ArtifactError where the file is no such artifact.
        """
        ...


@runtime_checkable
class CountsCosts(Protocol):
    """A target whose artifacts an estimate can read."""

    def costs(self, path: Path) -> tuple[OpCost, ...]:
        """Arithmetic and traffic of each operation of a saved artifact, in order of execution; nothing is run.

        RuntimeFault or ArtifactError where it cannot be read.
        """
        ...


@runtime_checkable
class ShownByExplorer(Protocol):
    """A target whose artifacts Model Explorer reads."""

    def explorer_graph(self, path: Path) -> ExplorerGraph:
        """The main graph of a saved artifact; RuntimeFault where it cannot be read."""
        ...


def labelled(notes: Mapping[str, str]) -> dict[str, str]:
    """Notes as pairs among those of others, in alphabetical order."""
    return {_PREFIX + name: notes[name] for name in sorted(notes)}


def notes_among(pairs: Mapping[str, str]) -> dict[str, str]:
    """Return the notes that :func:`labelled` put there; empty for an artifact by another tool."""
    return {name.removeprefix(_PREFIX): value for name, value in sorted(pairs.items()) if name.startswith(_PREFIX)}
