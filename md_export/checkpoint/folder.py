"""A checkpoint folder, opened: configs at once, weights per component when asked for."""

from __future__ import annotations

import hashlib
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from md_export.checkpoint.build import build_on_meta, component_named
from md_export.checkpoint.configs import check_vocabulary, read_model_config, read_trained_substitutions
from md_export.checkpoint.files import Layout, capped, read_json, unreadable
from md_export.checkpoint.keys import KeyDifference, difference, own_tensors
from md_export.checkpoint.tokenizer import TOKENIZER_FILES, check_tokenizer, tokenizer_dir
from md_export.checkpoint.weights import WeightSet, find_weights, weight_names
from md_export.components import COMPONENTS, Component, ModelConfig
from md_export.errors import CheckpointError

_CONFIGS: Final = (
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder; ``parent`` is the folder that a sibling inherits from.

    ``trained_substitutions`` names the rewrites that the UNet was trained to expect.
    """

    root: Path
    config: ModelConfig
    tokenizer_dir: Path
    trained_substitutions: tuple[str, ...]
    parent: Path | None = None

    def module(self, name: str) -> nn.Module:
        """Component ``name`` with its weights: float32, eval mode, no gradients.

        Float32 files stay memory-mapped, other dtypes are converted. Raises :class:`CheckpointError`
        for missing, extra, wrongly shaped or non-finite tensors, for files that cannot be read, and
        for configs beyond all size; :class:`ConfigError` for one that cannot be built.
        """
        component = component_named(name)
        module = build_on_meta(component, self.config)
        tensors = self._tensors(component)
        found = _compare(component, module, tensors)
        if found:
            raise CheckpointError(str(found))
        module.load_state_dict(_as_float32(component, tensors), strict=True, assign=True)
        return module.requires_grad_(False)

    def check(self) -> None:
        """Compare names and shapes of all exported components, values unread; one error lists everything."""
        differences = [
            _compare(component, build_on_meta(component, self.config), self._tensors(component))
            for component in COMPONENTS.values()
        ]
        if any(differences):
            raise CheckpointError("\n".join(str(found) for found in differences if found))

    def weight_files(self, name: str) -> tuple[Path, ...]:
        """Files that hold the weights of ``name``, those of the parent first."""
        return tuple(file for weights in self._weights(component_named(name)) for file in weights.files)

    def component_bytes(self, name: str) -> int:
        """Bytes of the tensors of ``name`` in the dtype in which they are stored."""
        return sum(tensor.nbytes for tensor in self._tensors(component_named(name)).values())

    def copy_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files, and nothing else that lies beside them, into the new ``folder``.

        Raises:
            CheckpointError: one of them is a link that leads out of the checkpoint.
        """
        check_tokenizer(self.tokenizer_dir)
        folder.mkdir()
        for name in TOKENIZER_FILES:
            if (self.tokenizer_dir / name).is_file():
                shutil.copyfile(self.tokenizer_dir / name, folder / name)

    def sha256(self) -> str:
        """Hex digest over names and contents of every config, tokenizer and weight file in use."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        total = hashlib.sha256()
        for label, file in sorted(self._files_in_use()):
            try:
                with file.open("rb") as handle:
                    digest = hashlib.file_digest(handle, "sha256").hexdigest()
            except OSError as error:
                unreadable(file, error)
            total.update(f"{label}\0{digest}\n".encode())
        return total.hexdigest()

    def _files_in_use(self) -> Iterable[tuple[str, Path]]:
        layout = self._layout
        used = {layout.require(name) for name in _CONFIGS}
        used |= {file for file in (self.tokenizer_dir / name for name in TOKENIZER_FILES) if file.is_file()}
        for component in COMPONENTS.values():
            for weights in self._weights(component):
                used |= {*weights.files, *(() if weights.index is None else (weights.index,))}
        for file in used:
            own = file.is_relative_to(self.root)
            base = self.root if own else self.parent
            assert base is not None  # noqa: S101 (files come from the root or the parent only)
            yield ("" if own else "parent/") + file.relative_to(base).as_posix(), file

    @property
    def _layout(self) -> Layout:
        return Layout(self.root, self.parent)

    def _weights(self, component: Component) -> list[WeightSet]:
        found = [find_weights(tier, component.folder) for tier in self._layout.tiers]
        weights = [one for one in found if one is not None]
        if not weights:
            names = weight_names(component.folder)
            raise CheckpointError(
                f"{self.root / component.folder} holds no weights: put {names[0]} there "
                f"(also read: {', '.join(names[1:])})"
            )
        return weights

    def _tensors(self, component: Component) -> dict[str, Tensor]:
        merged: dict[str, Tensor] = {}
        for weights in self._weights(component):
            merged |= own_tensors(component, weights.read())
        return merged


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a diffusers-style folder, or a sibling folder that stores only what differs from its parent.

    Reads configs and the tokenizer's vocabulary; weights are read by :meth:`Checkpoint.module`.
    Raises :class:`CheckpointError` or :class:`ConfigError`.
    """
    layout = open_layout(path)
    config = read_model_config(layout)
    tokenizer = tokenizer_dir(layout)
    check_tokenizer(tokenizer)
    check_vocabulary(tokenizer / "vocab.json", config)
    checkpoint = Checkpoint(layout.root, config, tokenizer, read_trained_substitutions(layout), layout.parent)
    for component in COMPONENTS:
        checkpoint.weight_files(component)
    return checkpoint


def open_layout(path: Path) -> Layout:
    """Find the folder and, through ``sibling.json``, its parent."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} does not exist: give the folder of a checkpoint") from None
    except OSError as error:
        unreadable(path, error)
    if not is_folder:
        raise CheckpointError(f"{path} is a file: give the checkpoint folder that holds unet/, vae/ and text_encoder/")
    note = path / "sibling.json"
    if not note.is_file():
        return Layout(path)
    given = read_json(note).get("parent")
    if not isinstance(given, str) or not given or Path(given).is_absolute():
        raise CheckpointError(f'{note} must say "parent": a path relative to its folder, such as "../.."')
    parent = (path / given).resolve()
    if not parent.is_dir() or parent == path.resolve():
        raise CheckpointError(f"{note} names the parent {given!r}, which is no other folder: correct the path")
    if (parent / "sibling.json").is_file():
        raise CheckpointError(f"{note} names the parent {given!r}, itself a sibling: name that one's parent instead")
    return Layout(path, parent)


def _compare(component: Component, module: nn.Module, tensors: dict[str, Tensor]) -> KeyDifference:
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return difference(component, expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()})


def _as_float32(component: Component, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    converted: dict[str, Tensor] = {}
    broken: list[str] = []
    for name, tensor in tensors.items():
        converted[name] = tensor.to(torch.float32).contiguous()
        if not torch.isfinite(converted[name]).all():
            nans = int(converted[name].isnan().sum())
            infinities = int(converted[name].isinf().sum())
            broken.append(f"{name}: {nans} NaN and {infinities} Inf among {tensor.numel()} values")
    if broken:
        raise CheckpointError(
            "\n    ".join(
                [
                    f"{component.name}: {len(broken)} tensors hold values that are not finite; "
                    "use a checkpoint from before training diverged, or copy it again:",
                    *capped(broken),
                ]
            )
        )
    return converted
