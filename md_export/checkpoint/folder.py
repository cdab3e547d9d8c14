"""Open a checkpoint folder: configs are read at once, the weights of a component when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from md_export.checkpoint.configs import SCHEDULER, check_vocabulary, read_model_config, read_trained_substitutions
from md_export.checkpoint.derived import RANDOM_NOTE, base_of, loras_of, open_layout, replaced_in
from md_export.checkpoint.files import (
    INHERITED,
    TOKENIZER_FILES,
    Layout,
    check_tokenizer,
    copy_tokenizer,
    hash_of_file,
    hash_of_files,
    hash_of_folder,
    hashes_of_loras,
    tokenizer_dir,
)
from md_export.checkpoint.lora import LoraFile, changes_of, open_lora
from md_export.checkpoint.modules import KeyDifference, as_float32, build_on_meta, difference, own_tensors
from md_export.checkpoint.recognize import INDEX
from md_export.checkpoint.weight_change import WeightChange, fused
from md_export.checkpoint.weights import WeightSet, find_weights, weight_names
from md_export.errors import CheckpointError
from md_export.models.config import ModelConfig
from md_export.models.families import component_of, family_of
from md_export.models.graph import Component
from md_export.models.text_encoder import is_unused, layers_of
from md_export.spec.loras import Lora
from md_export.spec.variant import Variant

# Index of the number in the path of a text encoder's layer, ``encoder.layers.11.…``.
_LAYER: Final = 2


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint folder; ``parent`` is the folder that a sibling inherits from.

    ``tokenizers``: folder of the files of each tokenizer, by its standard folder name. ``trained_substitutions``: names
    of the rewrites that the UNet was trained with. If the folder only adds ``loras`` to another checkpoint, ``base`` is
    that checkpoint's folder, which has all other files.
    """

    root: Path
    config: ModelConfig
    tokenizers: dict[str, Path]
    trained_substitutions: tuple[str, ...]
    parent: Path | None = None
    base: Path | None = None
    loras: tuple[Lora, ...] = ()
    _hashes: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    _hash_of: Callable[[Path], str] = field(default=hash_of_file, repr=False, compare=False)

    def at(self, variant: Variant) -> Checkpoint:
        """Return the checkpoint with the changes of a variant.

        Raises:
            UsageError: the checkpoint does not support the size, timestep or CLIP skip.
        """
        return replace(self, config=self.config.at(variant))

    def module(self, name: str) -> nn.Module:
        """Return component ``name`` with its weights and LoRAs: float32, eval mode, no gradients.

        Float32 files stay memory-mapped, other dtypes are converted. Raises :class:`CheckpointError`
        for missing, extra, wrongly shaped or non-finite tensors, for LoRAs that do not fit, for files that cannot be
        read, and for configs of an absurd size; :class:`ConfigError` for a config that cannot be built.
        """
        component = component_of(self.config, name)
        module = build_on_meta(component, self.config)
        tensors = self._tensors(component)
        found = _compare(component, module, tensors)
        if found:
            raise CheckpointError(str(found))
        weights = fused(as_float32(component.name, tensors), self._changes(name, module), component.name)
        module.load_state_dict(weights, strict=True, assign=True)
        return module.requires_grad_(False)

    def without_loras(self, name: str) -> tuple[nn.Module, list[WeightChange]]:
        """Return component ``name`` without its LoRAs, and the changes by these; raises as :meth:`module`."""
        module = replace(self, loras=(), _hashes={}).module(name)
        return module, self._changes(name, module)

    def check(self, also: tuple[str, ...] = ()) -> None:
        """Check tensor names and shapes of all components, without reading values; one error lists all differences.

        ``also``: other components to check, such as the VAE encoder of a model that does not in-paint.
        """
        rows = family_of(self.config).components
        components = {row.name: row for row in rows if row.name in (*self.components, *also)}
        modules = {name: build_on_meta(component, self.config) for name, component in components.items()}
        differences = [
            _compare(component, modules[name], self._tensors(component)) for name, component in components.items()
        ]
        if any(differences):
            raise CheckpointError("\n".join(str(found) for found in differences if found))
        for name, module in modules.items():
            self._changes(name, module)

    @property
    def components(self) -> tuple[str, ...]:
        """Components that pictures need, in the order in which they run.

        The folder may have weights of others, such as the VAE encoder's for a UNet that does not in-paint.
        """
        return tuple(row.name for row in family_of(self.config).components if row.needed(self.config))

    @property
    def title(self) -> str:
        """Command-line arguments that name this checkpoint: its folder, or the base's folder and ``--lora`` options."""
        return str(self.root) if self.base is None else " ".join([str(self.base), *(f"--lora {x}" for x in self.loras)])

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders with files of this checkpoint; ``root`` comes first."""
        return tuple(home for home in (self.root, self.base, self.parent) if home is not None)

    def loras_by_component(self) -> dict[str, tuple[Lora, ...]]:
        """Return the LoRAs of each component that has any."""
        files = self._lora_files()
        found = {name: tuple(file.lora for file in files if name in file.modules) for name in self.components}
        return {name: loras for name, loras in found.items() if loras}

    def weight_files(self, name: str) -> tuple[Path, ...]:
        """Return the weight files of ``name``, those of the parent first."""
        return tuple(file for weights in self._weights(component_of(self.config, name)) for file in weights.files)

    def component_bytes(self, name: str) -> int:
        """Return the size in bytes of the tensors of ``name`` in their stored dtypes."""
        return sum(tensor.nbytes for tensor in self._tensors(component_of(self.config, name)).values())

    @property
    def tokenizer_dir(self) -> Path:
        """Folder of the first text encoder's tokenizer."""
        return self.tokenizers["tokenizer"]

    def copy_tokenizers(self, folder: Path) -> None:
        """Copy each tokenizer's files to a new subfolder of ``folder`` with its name."""
        for name, source in self.tokenizers.items():
            copy_tokenizer(source, folder / name)

    def sha256(self) -> str:
        """Return the SHA-256, in hex, of the names and contents of all config, tokenizer and weight files in use."""
        return hash_of_files(self.file_hashes())

    def source_sha256(self, name: str) -> str:
        """Return the SHA-256, in hex, of the weight files, the LoRAs and the config of component ``name``."""
        return hash_of_folder(self.file_hashes(), component_of(self.config, name).folder)

    def file_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each config, tokenizer and weight file in use, by its path; computed once."""
        if not self._hashes:
            self._hashes.update({label: self._hash_of(file) for label, file in sorted(self._files_in_use())})
            for name, loras in self.loras_by_component().items():
                self._hashes.update(hashes_of_loras(component_of(self.config, name).folder, loras))
        return dict(self._hashes)

    def _files_in_use(self) -> Iterable[tuple[str, Path]]:
        layout = self._layout
        rows = [component_of(self.config, name) for name in self.components]
        used = {layout.require(f"{row.folder}/config.json") for row in rows} | {layout.require(SCHEDULER)}
        tables = (folder / name for folder in self.tokenizers.values() for name in TOKENIZER_FILES)
        used |= {file for file in tables if file.is_file()}
        if family_of(self.config).form.zeros_for_empty and (index := layout.find(INDEX)):
            used.add(index)
        for component in rows:
            for weights in self._weights(component):
                used |= {*weights.files, *(() if weights.index is None else (weights.index,))}
        for file in used:
            own = file.is_relative_to(layout.root)
            base = layout.root if own else self.parent
            assert base is not None  # noqa: S101 (files come from the root or the parent only)
            yield ("" if own else INHERITED) + file.relative_to(base).as_posix(), file

    @property
    def _layout(self) -> Layout:
        return Layout(self.base or self.root, self.parent, replaced_in(self.base or self.root))

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user: tensors of its files that are not used, and that its weights are random."""
        rows = family_of(self.config).of(self.components)
        texts = [row for row in rows if row.folder == "text_encoder"]
        count = layers_of(self.config.text_encoder, "last")
        names = [name for row in texts for name in self._stored(row) if name.startswith("encoder.layers.")]
        layers = sorted({int(name.split(".")[_LAYER]) for name in names if is_unused(name, count)})
        skipped = f"text_encoder: layers {', '.join(map(str, layers))} of the file are left out (CLIP skip)"
        random = "the weights are random, so the recipe's thresholds are lowered by a few dB"
        own = [skipped] * bool(layers) + [random] * self.is_random
        return (*own, *(note for file in self._lora_files() for note in file.notes))

    @property
    def is_random(self) -> bool:
        """Whether ``md-export init`` wrote this checkpoint."""
        return any((folder / RANDOM_NOTE).is_file() for folder in self.folders)

    def _lora_files(self) -> list[LoraFile]:
        family = family_of(self.config)
        files = [open_lora(lora, family.denoised.node) for lora in self.loras]
        for file in files:
            absent = [name for name in file.modules if name not in family.rows]
            if absent:
                raise CheckpointError(
                    f"{file.lora.name} changes {' and '.join(absent)}, which this checkpoint does not have: it was "
                    "trained for another model; give the checkpoint that it is for"
                )
        return files

    def _changes(self, name: str, module: nn.Module) -> list[WeightChange]:
        row = component_of(self.config, name)
        unused = partial(row.unused, self.config)
        return [change for file in self._lora_files() for change in changes_of(file, row.name, module, unused)]

    def _weights(self, component: Component) -> list[WeightSet]:
        found = [find_weights(tier, component.folder) for tier in self._layout.tiers(component.folder)]
        weights = [one for one in found if one is not None]
        if not weights:
            names = weight_names(component.folder)
            raise CheckpointError(
                f"{self._layout.root / component.folder} holds no weights: put {names[0]} there "
                f"(also read: {', '.join(names[1:])})"
            )
        return weights

    def _stored(self, component: Component) -> dict[str, Tensor]:
        merged: dict[str, Tensor] = {}
        for weights in self._weights(component):
            merged |= own_tensors(family_of(self.config), component, weights.read())
        return merged

    def _tensors(self, component: Component) -> dict[str, Tensor]:
        stored = self._stored(component)
        return {name: tensor for name, tensor in stored.items() if not component.unused(self.config, name)}


def open_checkpoint(path: Path, hash_of: Callable[[Path], str] = hash_of_file) -> Checkpoint:
    """Open a folder in diffusers' layout, a sibling that stores only differences from its parent, or one with LoRAs.

    Reads configs and the tokenizer's vocabulary; weights are read by :meth:`Checkpoint.module`. ``hash_of`` returns the
    SHA-256 of a file: a cached function reads the files of checkpoints that share them once.
    Raises :class:`CheckpointError` or :class:`ConfigError`.
    """
    layout = open_layout(path)
    config = read_model_config(layout)
    tokenizers = {name: tokenizer_dir(layout, name) for name in family_of(config).tokens}
    for name, encoder, text in config.text_encoders:  # a family with class labels has no text encoder
        check_tokenizer(tokenizers[name])
        check_vocabulary(tokenizers[name], encoder, text)
    base = base_of(path)
    checkpoint = Checkpoint(
        path,
        config,
        tokenizers,
        read_trained_substitutions(layout, config.denoiser.FOLDER),
        layout.parent,
        base and layout.root,
        loras_of(path),
        _hash_of=hash_of,
    )
    for component in checkpoint.components:
        checkpoint.weight_files(component)
    return checkpoint


def _compare(component: Component, module: nn.Module, tensors: dict[str, Tensor]) -> KeyDifference:
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return difference(component, expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
