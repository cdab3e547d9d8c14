"""Make a style for an export that has inputs for styles, without exporting again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.derived import adapted
from md_export.errors import UsageError
from md_export.parity.opened_export import check_checkpoint
from md_export.parity.styled_module import values_for
from md_export.spec.loras import STYLE_FOLDER, split_lora
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.style import keyed, read_style, scaled
from md_export.spec.tensors import Array, is_style_input, save_tensors
from md_export.system.files import staging
from md_export.targets import TARGETS
from md_export.targets.contract import WritesAdapters


def make_style(
    out: Path, checkpoint_dir: Path, loras: Sequence[str], folder: Path, progress: Callable[[str], None]
) -> tuple[Path, ...]:
    """Write the values of a style for each component of the export ``out`` that it changes, and return the files.

    ``folder`` appears with ``<component>.safetensors`` and, for targets whose runtime has a format for adapters, a file
    in it. Several ``loras`` (``FILE`` or ``FILE:scale``) are one style together.

    Raises:
        UsageError: the export has no inputs for styles, or not those that the LoRAs need.
        ArtifactError: the checkpoint is not the export's.
        CheckpointError: a LoRA does not fit the checkpoint.
        RewriteError: the LoRAs change something that inputs cannot change.
    """
    manifest, checkpoint = read_manifest(out), open_checkpoint(checkpoint_dir)
    styled = [entry for entry in manifest.artifacts if any(is_style_input(spec.name) for spec in entry.inputs)]
    if not styled:
        raise UsageError(f"{out} has no inputs for styles; export it with --style {loras[0]}")
    check_checkpoint(manifest, checkpoint)
    target = TARGETS[manifest.target].open()
    with adapted(checkpoint_dir, loras) as place, staging(folder) as made:
        changed = open_checkpoint(place)
        known = {entry.component: entry for entry in styled}
        for component in changed.loras_by_component():
            if component not in known:
                raise UsageError(
                    f"{' and '.join(loras)} changes {component}, which has no inputs for styles in {out}; export again "
                    f"with --style {loras[0]}"
                )
            progress(f"values of {component}")
            entry = known[component]
            values = values_for(changed, component, manifest.recipe, entry.inputs)
            save_tensors(values, made / f"{component}.safetensors")
            if isinstance(target, WritesAdapters):
                target.write_adapter(values, made / f"{component}{target.adapter_suffix}")
        names = sorted(path.name for path in made.iterdir())
    return tuple(folder / name for name in names)


def chosen_style(out: Path, manifest: Manifest, text: str) -> dict[str, Array]:
    """Return the values of a style, under their keys among the values of a picture.

    Args:
        text: name of a style of the export, or folder that :func:`make_style` wrote; ``:scale`` may follow.

    Raises:
        UsageError: the export has no such style.
        ArtifactError: the values are not for the export's artifacts.
    """
    name, scale = split_lora(text)
    own = {style.name: style.components for style in manifest.styles}
    if name in own:
        folder, components = out / STYLE_FOLDER / name, own[name]
    elif Path(name).is_dir():
        folder = Path(name)
        components = tuple(path.stem for path in sorted(folder.glob("*.safetensors")))
    else:
        raise UsageError(
            f"{out} has no style {name!r:.80}; it has {', '.join(own) or 'none'}. For others, name a folder that "
            "md-export style wrote"
        )
    found: dict[str, Array] = {}
    for component in components:
        values = read_style(folder / f"{component}.safetensors", manifest.entry_for(component).inputs)
        found |= keyed(component, values if scale is None else scaled(values, scale))
    return found
