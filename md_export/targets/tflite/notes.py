"""Notes inside a .tflite file: one metadata entry, whose buffer holds a JSON object of strings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter

from md_export.targets.notes import NAME

_FORM: Final = TypeAdapter(dict[str, str])


def attach_notes(converted: Any, notes: Mapping[str, str]) -> None:
    """Have a converted model's exporter write the notes; its weights are not touched.

    The exporter writes each string of the module's ``tfl.metadata`` as an entry (flatbuffer_export.cc,
    ``CreateMetadataVector``), and the quantizer keeps entries. litert_torch has no argument for it, hence the
    reach for its exporter's module. Editing the file instead would hold all of it in memory.
    """
    from litert_converter.mlir import ir  # type: ignore[import-untyped]  # ships no types

    if not notes:
        return
    module = converted._exporter.module.operation
    text = json.dumps(notes, sort_keys=True, separators=(",", ":"))
    with module.context:
        module.attributes["tfl.metadata"] = ir.DictAttr.get({NAME: ir.StringAttr.get(text)})


def read_notes(model: Any) -> dict[str, str]:
    """What :func:`attach_notes` wrote, from the ``ModelT`` that ``read_model`` gives; empty where there is none.

    Raises:
        ValueError: the entry is no JSON object of strings.
    """
    for entry in model.metadata or ():
        if entry.name == NAME.encode():
            data = model.buffers[entry.buffer].data
            return _FORM.validate_json(np.asarray([] if data is None else data, np.uint8).tobytes())
    return {}
