"""examples/testdata/vectors.json has what md-export computes; the tests of the apps read it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app_vectors import FILE, text_of, vectors
from md_export.checkpoint import open_checkpoint

AGAIN = "python tests/app_vectors.py examples/testdata/vectors.json writes them anew"


def difference(made: object, kept: object, where: str = "") -> str | None:
    """Return where two JSON values differ; floats may by rounding."""
    if isinstance(made, dict) and isinstance(kept, dict) and made.keys() == kept.keys():
        found = (difference(made[name], kept[name], f"{where}.{name}") for name in made)
    elif isinstance(made, list) and isinstance(kept, list) and len(made) == len(kept):
        found = (difference(*both, f"{where}[{at}]") for at, both in enumerate(zip(made, kept, strict=True)))
    elif isinstance(made, float) and isinstance(kept, float):
        return None if np.isclose(made, kept, rtol=1e-6, atol=1e-7) else where
    else:
        return None if made == kept else where
    return next((where for where in found if where), None)


@pytest.fixture(scope="module")
def made(nano: Path) -> object:
    return json.loads(text_of(vectors(open_checkpoint(nano))))


def test_the_vectors_are_what_md_export_computes(made: object) -> None:
    assert difference(made, json.loads(FILE.read_text())) is None, AGAIN


@pytest.mark.parametrize(
    ("was", "is_now", "where"),
    [
        ("591", "592", ".tokens"),
        ('"x0_of_x": "', '"x0_of_x": "9', ".notes"),
        ('"latent": [-', '"latent": [', ".latent"),
    ],
)
def test_a_changed_vector_is_noticed(made: object, was: str, is_now: str, where: str) -> None:
    text = FILE.read_text()
    assert was in text
    assert where in (difference(made, json.loads(text.replace(was, is_now))) or "")
