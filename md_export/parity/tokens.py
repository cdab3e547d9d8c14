"""Compare the token ids of the export's tokenizer with those of the golden cases.

An app tokenizes with these files. No artifact depends on them: if two words of the vocabulary are exchanged, no figure
changes, but the prompt "red" gives a blue picture.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from md_export.checkpoint.files import tokenizer_tables
from md_export.errors import CheckpointError, UsageError
from md_export.models.families import family_named
from md_export.models.tokenizers import tokenize
from md_export.parity.metrics import Check, Fault
from md_export.parity.opened_export import OpenedExport


def token_faults(export: OpenedExport) -> list[Fault]:
    """Return a fault for each tokenizer that gives other ids for a golden prompt, or that cannot be read."""
    folders = family_named(export.manifest.family).tokens
    try:
        lines = [line for folder in folders for line in _lines(export, folder)]
        lines += _swift_lines(export) if export.manifest.recipe.layout == "swift" else []
    except (CheckpointError, OSError, UsageError) as error:
        lines = [f"{error}; export again"]
    return [Fault(Check.TOKENIZER, line) for line in lines]


def _lines(export: OpenedExport, folder: str) -> Iterator[str]:
    value = family_named(export.manifest.family).tokens[folder]
    negative = (export.manifest.steps.negative if export.manifest.steps else None) or ""
    for case in export.golden.cases:
        prompts = {value.key: case.prompt, f"{value.key}.0": negative, f"{value.key}.1": case.prompt}
        for key, prompt in prompts.items():
            if key not in case.values:
                continue
            # The ids of one prompt; a class label is a single number.
            held = case.values[key].ravel()
            made = tokenize(export.out / folder, prompt, len(held)).ravel()
            if not np.array_equal(made, held):
                places = np.flatnonzero(made != held).tolist()
                yield (
                    f"{folder}/ gives other ids for the golden prompt {prompt!r:.80}: {len(places)} of {len(held)} "
                    f"differ, the first at {places[0]} is {made[places[0]]} instead of {held[places[0]]}; it was "
                    "altered, export again"
                )
                return


def _swift_lines(export: OpenedExport) -> Iterator[str]:
    """Yield a line for each table for Swift's tokenizer that differs from the tokenizer's."""
    vocabulary, merges = tokenizer_tables(export.out / "tokenizer")
    for name, table in (("vocab.json", vocabulary), ("merges.txt", merges)):
        if (export.out / name).read_bytes().split() != table.split():
            yield f"{name} differs from the one in tokenizer/; it was altered, export again"
