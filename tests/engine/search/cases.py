"""Made-up measurements for the tests of search."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from hypothesis import strategies as st

from md_export.engine.search.frontier import Base, Candidate, Form, Module, Point, point_of

FORMS = (
    Form("float16"),
    Form("int8"),
    Form("int4", "block", block_size=32),
    Form("palette4", "group", group_size=16),
    Form("palette2", "tensor"),
)
BASE = Base(bytes=40, noise=0.25, own_noise={"unet": 0.5})
_noises = st.one_of(st.integers(0, 6).map(float), st.floats(0, 10, allow_nan=False))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Module, ...]:
    """Up to five modules with up to four forms: few enough to try all choices, with ties and senseless forms."""
    paths = draw(st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=5, unique=True))
    return tuple(module(draw, path) for path in paths)


def module(draw: st.DrawFn, path: str) -> Module:
    forms = draw(st.lists(st.sampled_from(FORMS), min_size=1, max_size=4, unique=True))
    sizes = st.integers(1, 12)
    found = [Candidate(form, draw(sizes), draw(_noises), draw(_noises)) for form in forms]
    return Module(draw(st.sampled_from(["unet", "vae_decoder"])), path, 16, tuple(found))


def all_points(modules: Sequence[Module], base: Base) -> Iterator[Point]:
    ordered = sorted(modules, key=lambda module: module.key)
    for chosen in itertools.product(*(module.candidates for module in ordered)):
        yield point_of(ordered, chosen, base)
