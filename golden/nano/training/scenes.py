"""The nano grammar: scenes, their captions, and the held-out split.

A caption determines its picture completely: there is no jitter, since a
one-step model that regresses from noise can only blur what the text leaves open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
SIZES: tuple[str, ...] = ("large", "small")
PLACES: tuple[str, ...] = ("left", "right", "top", "bottom", "center")
BACKGROUNDS: tuple[str, ...] = ("white", "gray", "sky", "night")
PLACE_PHRASES: dict[str, str] = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the center",
}
#: relation words -> (place of the first object, place of the second object)
RELATIONS: dict[str, tuple[str, str]] = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
#: One (shape, colour, place) in HELD_OUT_EVERY is never trained on.
HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Item:
    """One object: what it is and where it sits."""

    shape: str
    colour: str
    size: str
    place: str


@dataclass(frozen=True)
class Scene:
    """One or two objects on a background; `relation` is empty for one object."""

    items: tuple[Item, ...]
    background: str
    relation: str = ""


def single(shape: str, colour: str, size: str, place: str, background: str) -> Scene:
    """A scene with one object."""
    return Scene((Item(shape, colour, size, place),), background)


def pair(first: tuple[str, str], relation: str, second: tuple[str, str], background: str) -> Scene:
    """A scene with two (shape, colour) objects, placed by `relation`."""
    places = RELATIONS[relation]
    items = tuple(
        Item(shape, colour, "medium", place) for (shape, colour), place in zip((first, second), places, strict=True)
    )
    return Scene(items, background, relation)


def caption(scene: Scene) -> str:
    """The full caption: every property of the scene is said."""
    return _single_caption(scene) if len(scene.items) == 1 else _pair_caption(scene)


def caption_variants(scene: Scene) -> tuple[str, ...]:
    """The full caption first, then those that leave a default unsaid.

    Defaults are: large, in the center, white background.
    """
    backgrounds = (True, False) if scene.background == "white" else (True,)
    if scene.relation:
        return tuple(_pair_caption(scene, background) for background in backgrounds)
    item = scene.items[0]
    sizes = (True, False) if item.size == "large" else (True,)
    places = (True, False) if item.place == "center" else (True,)
    return tuple(_single_caption(scene, *said) for said in product(sizes, places, backgrounds))


def is_held_out(scene: Scene) -> bool:
    """Whether any object of the scene is a held-out (shape, colour, place).

    The rule: (shape + 3 * colour + 7 * place) mod 10 == 0, each the index in its tuple.
    """
    return any(_item_held_out(item) for item in scene.items)


def all_singles() -> Iterator[Scene]:
    """Every scene with one object: 6 * 7 * 2 * 5 * 4 = 1680."""
    for choice in product(SHAPES, COLOURS, SIZES, PLACES, BACKGROUNDS):
        yield single(*choice)


def all_pairs() -> Iterator[Scene]:
    """Every scene with two different objects: 42 * 41 * 4 * 4 = 27552."""
    objects = tuple(product(SHAPES, COLOURS))
    for first, relation, second, background in product(objects, RELATIONS, objects, BACKGROUNDS):
        if first != second:
            yield pair(first, relation, second, background)


def words() -> tuple[str, ...]:
    """Every word and mark that a caption can hold, sorted."""
    phrases = (*PLACE_PHRASES.values(), *RELATIONS)
    found = {word for phrase in phrases for word in phrase.split()}
    found.update(SHAPES, COLOURS, SIZES, PLACES, BACKGROUNDS, ("a", "an", ",", "background"))
    return tuple(sorted(found))


def _item_held_out(item: Item) -> bool:
    shape, colour = SHAPES.index(item.shape), COLOURS.index(item.colour)
    place = PLACES.index(item.place)
    return (shape + 3 * colour + 7 * place) % HELD_OUT_EVERY == 0


def _single_caption(scene: Scene, say_size: bool = True, say_place: bool = True, say_background: bool = True) -> str:
    item = scene.items[0]
    noun = f"{item.size} {_noun(item)}" if say_size else _noun(item)
    place = f" {PLACE_PHRASES[item.place]}" if say_place else ""
    return _with_article(noun) + place + _background_phrase(scene, say_background)


def _pair_caption(scene: Scene, say_background: bool = True) -> str:
    first, second = (_with_article(_noun(item)) for item in scene.items)
    return f"{first} {scene.relation} {second}" + _background_phrase(scene, say_background)


def _background_phrase(scene: Scene, said: bool) -> str:
    return f", {scene.background} background" if said else ""


def _noun(item: Item) -> str:
    return f"{item.colour} {item.shape}"


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
