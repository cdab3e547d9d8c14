"""The file of text embeddings: what is written is read, by the header's rules alone, too, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from md_export.checkpoint import open_checkpoint
from md_export.errors import ArtifactError, UsageError
from md_export.models.families import family_named
from md_export.models.prompts import StoredPrompts, read_prompts, values_of_prompt, write_prompts
from md_export.models.sampling.generate import PictureRequest
from md_export.parity.golden.prepare import golden_source
from md_export.spec.prompts import PROMPTS_FILE

PROMPTS = ("", "a red circle", "ein grüner Käse")


def stored(folder: Path) -> StoredPrompts:
    values = {"text_encoder.last_hidden_state": np.arange(30, dtype=np.float32).reshape(3, 5, 2)}
    return StoredPrompts(PROMPTS, values, folder)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_prompts(stored(tmp_path))
    found = read_prompts(tmp_path)
    assert (found.prompts, found.length) == (PROMPTS, 5)
    (value,) = found.of("a red circle").values()
    assert value.tolist() == [stored(tmp_path).values["text_encoder.last_hidden_state"][1].tolist()]


def test_an_app_reads_it_as_the_page_says(tmp_path: Path) -> None:
    """docs/prompts.md: 8 bytes of length, JSON, and row n of a tensor at n times its size."""
    write_prompts(stored(tmp_path))
    content = (tmp_path / PROMPTS_FILE).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    row = json.loads(header["__metadata__"]["prompts"]).index("ein grüner Käse")
    tensor = header["text_encoder.last_hidden_state"]
    (begin, end), (count, *shape) = tensor["data_offsets"], tensor["shape"]
    size = (end - begin) // count
    found = np.frombuffer(content[start + begin + row * size :][:size], "<f4").reshape(shape)
    assert (tensor["dtype"], found.tolist()) == ("F32", stored(tmp_path).values[[*header][1]][2].tolist())


def test_the_same_prompts_give_the_same_bytes(tmp_path: Path) -> None:
    write_prompts(stored(tmp_path))
    content = (tmp_path / PROMPTS_FILE).read_bytes()
    write_prompts(stored(tmp_path))
    assert (tmp_path / PROMPTS_FILE).read_bytes() == content


VALUES = {"x": np.zeros((2, 3, 4), np.float32)}
BROKEN: dict[str, Callable[[], bytes]] = {
    "no tensors": lambda: b"no safetensors",
    "cut": lambda: save(VALUES, {"prompts": '["a", "b"]'})[:-1],
    "no metadata": lambda: save(VALUES),
    "no list": lambda: save(VALUES, {"prompts": "a"}),
    "no texts": lambda: save(VALUES, {"prompts": "[1, 2]"}),
    "more prompts than rows": lambda: save(VALUES, {"prompts": '["a", "b", "c"]'}),
    "nothing": lambda: save({}, {"prompts": "[]"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_another_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / PROMPTS_FILE).write_bytes(save(VALUES, {"prompts": '["a", "b"]'}))
    assert read_prompts(tmp_path).prompts == ("a", "b")
    (tmp_path / PROMPTS_FILE).write_bytes(BROKEN[name]())
    with pytest.raises(ArtifactError, match=PROMPTS_FILE):
        read_prompts(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=PROMPTS_FILE):
        read_prompts(tmp_path)


def test_a_prompt_that_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'a red circlet'; give one of its 3 prompts, such as 'a red circle' or"):
        stored(tmp_path).of("a red circlet")


def test_embeddings_are_those_of_the_pipeline(nano: Path) -> None:
    pipeline = golden_source(open_checkpoint(nano)).pipeline
    made = pipeline.embedded(PROMPTS)
    (wanted,) = pipeline.values([PictureRequest(PROMPTS[1], 0)])
    assert made.keys() == {"text_encoder.last_hidden_state"}
    assert np.array_equal(made["text_encoder.last_hidden_state"][1:2], wanted["text_encoder.last_hidden_state"])
    assert not np.array_equal(made["text_encoder.last_hidden_state"][2:], wanted["text_encoder.last_hidden_state"])


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("sd15", ["text_encoder.last_hidden_state"]),
        ("pixart", ["text_encoder.last_hidden_state", "given.attention_mask"]),
        ("dit", []),
    ],
)
def test_what_a_family_stores(family: str, keys: list[str]) -> None:
    assert [*values_of_prompt(family_named(family))] == keys
