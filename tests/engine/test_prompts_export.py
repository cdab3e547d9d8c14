"""Exports with stored text embeddings: verified, with and without the text encoder, and what must be noticed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from md_export.checkpoint.architectures import write_checkpoint
from md_export.engine.against_checkpoint import Comparison, compare
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.engine.planning import plan
from md_export.engine.selftest import comparer
from md_export.errors import RecipeError, UsageError
from md_export.models.prompts import StoredPrompts, read_prompts, write_prompts
from md_export.parity.golden.folder import read_golden
from md_export.parity.judge import verify
from md_export.parity.metrics import Check
from md_export.parity.metrics import compare as figures
from md_export.parity.selftest.run import try_all
from md_export.parity.selftest.table import MUTATIONS
from md_export.spec.manifest import check_export, read_manifest
from md_export.spec.prompts import PROMPTS_FILE
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from mutations import PROMPTS, rehash
from small_models import XL_SHORT
from support import Exported, installed, made_once

pytestmark = pytest.mark.slow
GOLDEN = "a small blue square in the center, white background"  # the first of nano's golden cases
STORED = (GOLDEN, "a blue square in a corner", "ein grüner Stern")
TEXT = "text_encoder.last_hidden_state"


def recipe_of(kind: str) -> Recipe:
    recipe = load_recipe(builtin_recipe("onnx", "int8"))
    return recipe.prompted(STORED, text_encoder=kind == "with")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, nano: Path) -> Exported:
    """``made("onnx", "with")`` → an export of the nano checkpoint with stored prompts. Do not change it."""
    installed("onnx")
    return made_once(tmp_path_factory, "prompts", lambda _, kind, out: export(recipe_of(kind), nano, out))


@pytest.mark.parametrize("kind", ["with", "without"])
def test_the_file_holds_what_torch_computes(made: Exported, nano: Path, kind: str) -> None:
    out = made("onnx", kind)
    manifest, stored = read_manifest(out), read_prompts(out)
    assert manifest.artifacts[0].component == ("text_encoder" if kind == "with" else "unet")
    assert PROMPTS_FILE in manifest.files
    assert check_export(out).differences == ()
    assert (stored.prompts, manifest.stored_prompts) == (STORED, STORED)
    (case,) = (case for case in read_golden(out / "golden").cases if case.prompt == GOLDEN and case.seed == 0)
    assert figures(stored.of(GOLDEN)[TEXT], case.values[TEXT]).snr_db > 100
    assert figures(stored.of(STORED[1])[TEXT], case.values[TEXT]).snr_db < 20
    result = verify(out)
    assert result.failures == ()
    assert result.picture is not None, "judged without a text encoder, too"
    assert compare(Comparison(out, nano)) == ()


@pytest.mark.parametrize("kind", ["with", "without"])
def test_the_self_test_damages_the_file(made: Exported, nano: Path, kind: str) -> None:
    out = made("onnx", kind)
    again = {entry.component: out / entry.file for entry in read_manifest(out).artifacts}
    rows = list(try_all(out, comparer(nano, again), [one for one in MUTATIONS if one.name in PROMPTS]))
    assert [row for row in rows if not row.passed] == []
    skipped = {row.mutation for row in rows if row.verdict == "not applicable"}
    assert skipped == (set() if kind == "with" else {"embeddings taken from the artifact"})


def edited(out: Path, folder: Path, change: Callable[[StoredPrompts], StoredPrompts]) -> Path:
    """A copy with other embeddings, and with hashes that agree."""
    copy = Path(shutil.copytree(out, folder))
    write_prompts(change(read_prompts(copy)))
    rehash(copy)
    return copy


def row(stored: StoredPrompts, number: int, value: float) -> StoredPrompts:
    values = {key: array.copy() for key, array in stored.values.items()}
    values[TEXT][number] *= np.float32(value)
    return dataclasses.replace(stored, values=values)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("with", lambda x: row(x, 1, 1.3), "prompt 'a blue square in a corner': snr"),
        ("without", lambda x: row(x, 0, 1.001), "from its golden value in case-0"),
        ("without", lambda x: row(x, 1, np.nan), "9856 NaN"),
        ("without", lambda x: dataclasses.replace(x, prompts=x.prompts[::-1]), "in another order"),
        ("without", lambda x: dataclasses.replace(x, prompts=(*x.prompts[:2], "x")), f"lacks the prompt '{STORED[2]}'"),
        ("without", lambda x: dataclasses.replace(x, values={"x": x.values[TEXT]}), f"has x, not {TEXT}"),
        ("without", lambda x: dataclasses.replace(x, values={TEXT: x.values[TEXT][:, 1:]}), "shape"),
    ],
)
def test_a_fault_that_needs_no_checkpoint(
    made: Exported, tmp_path: Path, kind: str, change: Callable[[StoredPrompts], StoredPrompts], said: str
) -> None:
    result = verify(edited(made("onnx", kind), tmp_path / "out", change))
    assert {fault.check for fault in result.faults} == {Check.PROMPTS}
    assert any(said in fault for fault in result.faults)


def test_without_a_text_encoder_only_the_checkpoint_knows_other_prompts(
    made: Exported, nano: Path, tmp_path: Path
) -> None:
    out = edited(made("onnx", "without"), tmp_path / "out", lambda stored: row(stored, 1, 1.001))
    assert verify(out).failures == ()
    (finding,) = compare(Comparison(out, nano))
    assert finding.check is Check.PROMPTS
    assert "60.0 dB from what torch computes of the checkpoint" in finding.text


def test_an_altered_hash_and_a_missing_file(made: Exported, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made("onnx", "without"), tmp_path / "out"))
    write_prompts(row(read_prompts(out), 1, 1.001))
    assert [str(fault) for fault in verify(out).faults] == [f"{PROMPTS_FILE} was altered; export again"]
    (out / PROMPTS_FILE).unlink()
    assert {fault.check for fault in verify(out).faults} == {Check.BYTES, Check.PROMPTS}


def test_pictures_of_stored_prompts_alone(made: Exported, nano: Path) -> None:
    out, least = made("onnx", "without"), recipe_of("with").picture_psnr_db
    requests = [(prompt, 3) for prompt in STORED]
    for one, wanted in zip(pictures_of_artifacts(out, requests), pictures_of_checkpoint(nano, requests), strict=True):
        assert figures(one, wanted).psnr_db > least
    with pytest.raises(UsageError, match="has no text encoder, and no stored embeddings of the prompt 'a cat'"):
        pictures_of_artifacts(out, [("a cat", 3)])
    assert len(pictures_of_artifacts(made("onnx", "with"), [("a cat", 3)])) == 1


def test_a_guided_export_stores_the_empty_prompt(nano: Path, tmp_path: Path) -> None:
    recipe = load_recipe(builtin_recipe("onnx", "fp32")).sampled(2, 3.0).prompted(STORED[1:], text_encoder=False)
    manifest, _ = export(recipe, nano, tmp_path / "out")
    assert manifest.stored_prompts == read_prompts(tmp_path / "out").prompts == ("", *STORED[1:])
    pair = (STORED[1], 0)
    (made,), (wanted,) = (
        pictures_of_artifacts(tmp_path / "out", [pair]),
        pictures_of_checkpoint(nano, [pair], sampler=recipe.sampler),
    )
    assert figures(made, wanted).psnr_db > 80
    (other,) = pictures_of_artifacts(tmp_path / "out", [pair], negative=STORED[2])
    assert figures(other, wanted).psnr_db < 60
    with pytest.raises(UsageError, match="embeddings of the prompt 'blurry'"):
        pictures_of_artifacts(tmp_path / "out", [pair], negative="blurry")


def test_the_mask_of_t5_is_stored(pixart_checkpoint: Path, tmp_path: Path) -> None:
    """The transformer reads it; one that is not the tokenizer's is named."""
    recipe = load_recipe(builtin_recipe("onnx", "fp32")).prompted(("a red cat",), text_encoder=False)
    recipe = dataclasses.replace(recipe, golden=dataclasses.replace(recipe.golden, prompts=recipe.golden.prompts[:1]))
    out = tmp_path / "out"
    manifest, _ = export(recipe, pixart_checkpoint, out)
    assert manifest.recipe.components == ("transformer", "vae_decoder")
    (made,) = pictures_of_artifacts(out, [("a red cat", 5)])
    (wanted,) = pictures_of_checkpoint(pixart_checkpoint, [("a red cat", 5)])
    assert figures(made, wanted).psnr_db > 50
    mask = "given.attention_mask"
    other = edited(
        out, tmp_path / "other", lambda x: dataclasses.replace(x, values={**x.values, mask: 1 - x.values[mask]})
    )
    assert any("the mask of the prompt 'a red cat'" in line for line in verify(other).failures)


def test_two_text_encoders(tmp_path: Path) -> None:
    xl_checkpoint = tmp_path / "xl"
    write_checkpoint(xl_checkpoint, XL_SHORT, seed=7)
    recipe = load_recipe(builtin_recipe("onnx", "fp32")).sampled(2, 5.0).prompted(("a red apple",), text_encoder=False)
    recipe = dataclasses.replace(recipe, golden=dataclasses.replace(recipe.golden, prompts=recipe.golden.prompts[:1]))
    manifest, _ = export(recipe, xl_checkpoint, tmp_path / "out")
    assert manifest.recipe.components == ("unet", "vae_decoder")
    names = {"text_encoder.hidden_states", "text_encoder_2.hidden_states", "text_encoder_2.text_embeds"}
    assert {*read_prompts(tmp_path / "out").values} == names
    pair = ("a red apple", 1)
    (made,) = pictures_of_artifacts(tmp_path / "out", [pair])
    (wanted,) = pictures_of_checkpoint(xl_checkpoint, [pair], sampler=recipe.sampler)
    assert figures(made, wanted).psnr_db > 50


def test_steps_are_shared_and_new_prompts_leave_the_rest_in_the_cache(nano: Path) -> None:
    plain = load_recipe(builtin_recipe("onnx", "int8"))
    several = [
        plain,
        dataclasses.replace(plain, name="one").prompted(("a",)),
        dataclasses.replace(plain, name="two").prompted(("b",)),
        dataclasses.replace(load_recipe(builtin_recipe("onnx", "fp32")), name="three").prompted(("b",), False),
    ]
    found = plan(several, nano, None)
    needs = [set(found.step(one.key).needs) for one in found.exports]
    assert needs[1] - needs[0] != needs[2] - needs[0]
    assert needs[0] < needs[1] and needs[0] < needs[2]
    assert needs[2] - needs[0] <= needs[3], "other targets store the same file"


def test_a_model_without_text_has_none(dit_checkpoint: Path) -> None:
    recipe = load_recipe(builtin_recipe("onnx", "fp32"))
    assert plan([recipe], dit_checkpoint, None).steps
    with pytest.raises(RecipeError, match="the checkpoint has no text encoder"):
        plan([recipe.prompted(("tench",))], dit_checkpoint, None)


def test_the_swift_layout_gathers_the_file(swift: Path, nano: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(load_recipe(builtin_recipe("coreml", "fp16")), layout="swift")
    out = tmp_path / "out"
    export(recipe.prompted(STORED, text_encoder=False), nano, out)
    script = (out / "finish-on-mac.sh").read_text()
    assert 'packages="Unet VAEDecoder"' in script
    assert f'files="vocab.json merges.txt schedule.json {PROMPTS_FILE}"' in script
    assert 'packages="TextEncoder Unet VAEDecoder"' in (swift / "finish-on-mac.sh").read_text()
    assert compare(Comparison(out, nano)) == ()
    assert len(pictures_of_artifacts(out, [(STORED[1], 0)])) == 1
