"""Compare an export with its checkpoint: golden cases, metadata, and every file that an app reads are derived again.

The export's folder is not trusted: an edited export can be consistent in itself, but not with the checkpoint's weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.checkpoint.derived import adapted
from md_export.engine.artifact import own_notes
from md_export.engine.dependencies import notes_of, steps_notes
from md_export.engine.export import pieces
from md_export.engine.plan import ArtifactResult
from md_export.engine.request import Resources
from md_export.engine.steps import manifest_of, write_beside
from md_export.errors import ArtifactError, MachineError, MdExportError, RuntimeFault, UsageError
from md_export.models.families import family_named
from md_export.parity.golden.recomputed import case_lines, expected_cases, reference_findings
from md_export.parity.graphs import graph_lines
from md_export.parity.judge import Execute
from md_export.parity.judge import verify as judge
from md_export.parity.lora_fusing import added_loras
from md_export.parity.metrics import Check, Finding
from md_export.parity.opened_export import OpenedExport, check_checkpoint, open_export
from md_export.parity.promised import differences
from md_export.parity.prompts import embeddings, torch_findings
from md_export.parity.styled_module import style_checkpoint
from md_export.parity.verdict import Verdict
from md_export.parity.weights.audit import AuditResult
from md_export.parity.weights.audit import audit as audit_weights
from md_export.spec.artifact import GOLDEN_FOLDER, NPU_FOLDER, artifact_path, sha256_of_artifact
from md_export.spec.loras import STYLE_FOLDER, style_name
from md_export.spec.manifest import Manifest, paths_beside, read_manifest
from md_export.spec.names import whole_of
from md_export.spec.prompts import PROMPTS_FILE
from md_export.spec.style import style_file
from md_export.spec.tensors import Array
from md_export.system.files import sha256_of
from md_export.system.isolation import isolated
from md_export.system.workspace import scratch_folder
from md_export.targets import TARGETS, tools_of
from md_export.targets.execution import execute

Progress = Callable[[str], None]
# Artifacts by component.
Lowered: TypeAlias = Mapping[str, Path]
# Fields of a manifest that are derived from checkpoint and recipe.
_FIELDS: Final = ("one_step", "steps", "schedule", "family", "zeros_for_empty", "checkpoint_files", "loras")
_AGAIN: Final = "it was edited, export again"


@dataclass(frozen=True)
class Comparison:
    """The export in ``out``, the checkpoint that it was made from, and golden cases to use instead of the export's.

    ``styles``: LoRA of each of its styles, ``FILE`` or ``FILE:scale``.
    """

    out: Path
    checkpoint: Path
    golden: Path | None = None
    styles: tuple[str, ...] = ()


@contextmanager
def comparison(out: Path, checkpoint: Path, loras: Sequence[str], golden: Path | None = None) -> Iterator[Comparison]:
    """Yield a comparison; ``loras`` were fused into the weights, or are the export's styles if it has any.

    Raises:
        UsageError: a style's LoRA is not given.
    """
    styles = read_manifest(out).styles
    lacking = [style.name for style in styles if style.name not in map(style_name, loras)]
    if lacking:
        raise UsageError(
            f"{out} has styles ({', '.join(style.name for style in styles)}); name the file of {lacking[0]} with --lora"
        )
    with adapted(checkpoint, () if styles else loras) as folder:
        yield Comparison(out, folder, golden, tuple(loras) if styles else ())


def verify(
    out: Path,
    checkpoint: Path,
    golden: Path | None = None,
    progress: Progress = lambda _: None,
    loras: Sequence[str] = (),
) -> Verdict:
    """Return the verdict on an export, with a fault for everything that differs from the checkpoint.

    ``loras``: those that it was exported with, fused or as styles; each ``FILE`` or ``FILE:scale``.

    Raises:
        MdExportError: as :func:`md_export.parity.judge.judge`; the checkpoint cannot be read, or is not the export's.
        UsageError: a style's LoRA is not given.
    """
    with comparison(out, checkpoint, loras, golden) as asked:
        return judge(out, golden, progress).with_findings(_findings(asked, progress))


def audit(out: Path, checkpoint: Path, progress: Progress = lambda _: None, loras: Sequence[str] = ()) -> AuditResult:
    """Return the audit of the stored weights, with a fault for everything else that differs from the checkpoint.

    ``loras``: as for :func:`verify`.

    Raises:
        MdExportError: as :func:`md_export.parity.weights.audit.audit`.
        UsageError: a style's LoRA is not given.
    """
    with comparison(out, checkpoint, loras) as asked, scratch_folder() as folder:
        result = audit_weights(out, asked.checkpoint, progress)
        found = result.with_findings(_findings(asked, progress))
        again = lowered_again(asked, folder, progress)
        found = found.with_findings(_style_findings(asked, folder / "artifact"))
        progress("compare graphs with the checkpoint's")
        read = isolated(compare_graphs, ArtifactError, f"{out}: reading its graphs")
        return found.with_findings(read(Graphs(out, again)))


def _style_findings(asked: Comparison, made: Path) -> Iterator[Finding]:
    """Yield a finding for each file of a style that differs from the one that was ``made`` again."""
    for style in read_manifest(asked.out).styles:
        for component in style.components:
            name = style_file(style.name, component)
            own = asked.out / name
            if (made / name).is_file() and (not own.is_file() or sha256_of(own) != sha256_of(made / name)):
                yield Finding(component, Check.CHECKPOINT, f"{name} is not what its LoRA gives; {_AGAIN}")


def lowered_again(asked: Comparison, folder: Path, progress: Progress) -> Lowered:
    """Convert the checkpoint again by the export's recipe, or take the artifacts from the cache.

    Raises:
        MdExportError: as :func:`md_export.engine.export.export`.
    """
    recipe = dataclasses.replace(read_manifest(asked.out).recipe, styles=asked.styles)
    with Resources().request(recipe, asked.checkpoint, folder, None) as request:
        made = pieces(request, folder, ("artifact",), progress)
    entries = [result.entry for result in made if isinstance(result, ArtifactResult)]
    return {entry.component: folder / "artifact" / entry.file for entry in entries}


@dataclass(frozen=True)
class Graphs:
    """The export in ``out``, and the artifacts that were lowered ``again`` from its checkpoint."""

    out: Path
    again: Lowered


def compare_graphs(asked: Graphs) -> tuple[Finding, ...]:
    """Compare all artifacts in this process, which an untrusted file could crash."""
    export = open_export(asked.out)
    return tuple(graph_findings(export, asked.again, [entry.component for entry in export.manifest.artifacts]))


def graph_findings(export: OpenedExport, again: Lowered, components: Collection[str]) -> Iterator[Finding]:
    """Yield a finding for each difference from the artifacts lowered ``again``; identical files are not parsed."""
    manifest, libraries = export.manifest, family_named(export.manifest.family).form.libraries
    target, now = TARGETS[manifest.target].open(), tools_of(manifest.target, libraries)
    others = [f"{name} {held}, here {now.get(name)}" for name, held in manifest.tools.items() if now.get(name) != held]
    made = f" (the export was made with {', '.join(others)})" if others else ""
    for entry in manifest.artifacts:
        own, wanted = artifact_path(export.out, entry), again[entry.component]
        if entry.component not in components or sha256_of_artifact(own) == sha256_of_artifact(wanted):
            continue
        try:
            lines = tuple(graph_lines(target.graph(own), target.graph(wanted)))
        except RuntimeFault as error:
            lines = (str(error),)
        yield from _each(entry.component, Check.GRAPH, (line + made for line in lines))


def _findings(asked: Comparison, progress: Progress) -> tuple[Finding, ...]:
    export = open_export(asked.out, asked.golden)
    check_checkpoint(export.manifest, open_checkpoint(asked.checkpoint))
    progress(f"compute {len(export.golden.cases)} golden cases in torch")
    return isolated(compare, ArtifactError, f"comparing {asked.out} with its checkpoint")(asked)


def compare(asked: Comparison) -> tuple[Finding, ...]:
    """Return the findings, in this process; torch has one component in memory at a time."""
    export, checkpoint = open_export(asked.out, asked.golden), open_checkpoint(asked.checkpoint)
    pairs = (
        () if asked.golden else expected_cases(export.manifest.recipe, checkpoint.at(export.manifest.recipe.variant))
    )
    styles = (line for file in asked.styles for line in _reference_of_style(export, asked, file))
    made = embeddings_of(export.manifest, checkpoint)
    stored = torch_findings(export.out, export.manifest, made) if made else ()
    return (*derived_findings(export, checkpoint, pairs), *reference_of(export, checkpoint, print), *styles, *stored)


def _reference_of_style(export: OpenedExport, asked: Comparison, file: str) -> Iterator[Finding]:
    """Yield a finding if a style's LoRA is another one, and for each tensor of its golden cases that differs."""
    manifest, name = export.manifest, style_name(file)
    with style_checkpoint(asked.checkpoint, file) as checkpoint:
        (lora,) = added_loras(checkpoint)
        if dataclasses.replace(lora, name=name) not in manifest.styles:
            text = f"the style {name} was not made from {lora.name} at the scale {lora.scale:g}; name its own file"
            yield Finding("", Check.REFERENCE, text)
            return
        changed = checkpoint.at(manifest.recipe.variant)
        yield from reference_findings(changed, manifest, export.golden, print, name)


def embeddings_of(manifest: Manifest, checkpoint: Checkpoint) -> dict[str, Array]:
    """Return torch's embeddings of the stored prompts of an export; empty if it stores none."""
    prompts, recipe = manifest.stored_prompts, manifest.recipe
    return embeddings(checkpoint.at(recipe.variant), recipe, prompts) if prompts else {}


def reference_of(export: OpenedExport, checkpoint: Checkpoint, progress: Progress) -> Iterator[Finding]:
    """Yield a finding for each golden tensor that differs from torch's result for the checkpoint."""
    recipe = export.manifest.recipe
    yield from reference_findings(checkpoint.at(recipe.variant), export.manifest, export.golden, progress)


def derived_findings(
    export: OpenedExport, checkpoint: Checkpoint, pairs: Sequence[tuple[str, int]], execute: Execute = execute
) -> Iterator[Finding]:
    """Yield a finding for each file, constant and metadata field that differs from those of the checkpoint.

    ``pairs``: prompt and seed of each requested case; empty if the cases are not the export's.
    """
    manifest, checkpoint = export.manifest, checkpoint.at(export.manifest.recipe.variant)
    if pairs:
        yield from _each("", Check.CASES, case_lines(pairs, export.golden))
    with scratch_folder() as folder:
        (folder / GOLDEN_FOLDER).symlink_to(export.out.resolve() / GOLDEN_FOLDER)
        write_beside(manifest.recipe, checkpoint, folder, manifest.artifacts)
        derived = manifest_of(manifest.recipe, checkpoint, folder, manifest.artifacts, manifest.drift)
        yield from _each("", Check.CHECKPOINT, _file_lines(export, folder))
    yield from _each("", Check.CHECKPOINT, _constant_lines(manifest, derived))
    yield from _note_findings(export, checkpoint, execute)


def _each(component: str, check: Check, lines: Iterable[str]) -> Iterator[Finding]:
    return (Finding(component, check, line) for line in lines)


def _file_lines(export: OpenedExport, folder: Path) -> Iterator[str]:
    """Yield a line for each file beside the artifacts that differs from the one in ``folder``, or is additional."""
    paths = paths_beside(folder, export.manifest.artifacts)
    derived = {name: path for name, path in paths.items() if not name.startswith(f"{GOLDEN_FOLDER}/")}
    for name, path in derived.items():
        own = export.out / name
        if not own.is_file() or sha256_of(own) != sha256_of(path):
            yield f"{name} {'differs from the checkpoint' if own.is_file() else 'is missing'}; {_AGAIN}"
    read = tuple(f"{name}/" for name in family_named(export.manifest.family).tokens)
    held = {name for name in paths_beside(export.out, export.manifest.artifacts) if name.startswith(read)}
    # The embeddings are compared as numbers, since another machine rounds them differently.
    stored = [PROMPTS_FILE] if export.manifest.stored_prompts else []
    others = (f"{GOLDEN_FOLDER}/", f"{NPU_FOLDER}/", f"{STYLE_FOLDER}/", *stored)
    for name in sorted((held | {name for name in export.manifest.files if not name.startswith(others)}) - set(derived)):
        yield f"{name} does not come from the checkpoint; {_AGAIN}"


def _constant_lines(manifest: Manifest, derived: Manifest) -> Iterator[str]:
    held, wanted = (
        {name: value for name, value in dataclasses.asdict(one).items() if name in _FIELDS}
        for one in (manifest, derived)
    )
    yield from differences("manifest.json", held, wanted)


def _note_findings(export: OpenedExport, checkpoint: Checkpoint, execute: Execute) -> Iterator[Finding]:
    manifest, recipe, notes = export.manifest, export.manifest.recipe, notes_of(checkpoint)
    for entry in manifest.artifacts:
        wanted = {
            **notes[whole_of(entry.component)],
            **steps_notes(checkpoint, recipe.sampler),
            **own_notes(entry.component, entry.inputs, entry.outputs),
            **({"form": recipe.form} if recipe.form else {}),
            "md_export": manifest.md_export,
        }
        try:
            held = execute(manifest.target, artifact_path(export.out, entry), []).found.notes
        except MachineError:
            raise
        except MdExportError as error:
            yield Finding(entry.component, Check.EXECUTION, str(error))
            continue
        lines = [*differences(f"metadata of {entry.file}", dict(held), wanted)]
        lines += [f"metadata of {entry.file}: {name} is unknown; {_AGAIN}" for name in sorted(held.keys() - wanted)]
        yield from _each(entry.component, Check.CHECKPOINT, lines)
