"""Damage to the other files of an export: golden files, their index, the tokenizer and the manifest."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

from md_export.models.families import family_named
from md_export.models.tokenizers import LABELS
from md_export.models.values import LAST, MADE
from md_export.models.walk import picture_from
from md_export.parity.golden.surface import inputs_of
from md_export.parity.selftest.damage import flip_block, other_note
from md_export.parity.selftest.sandbox import Change, Json, NotApplicable, Sandbox, edit_json, make_own
from md_export.parity.subject import most_snr_db
from md_export.spec.artifact import GOLDEN_FOLDER
from md_export.spec.tensors import only_output, save_tensors

# Files of a tokenizer that hold a vocabulary, or the names of classes.
_TABLES: Final = ("vocab.json", "tokenizer.json", LABELS)
_LABELS_FIELDS: Final = {"count", "names"}


def stale_golden(sandbox: Sandbox) -> None:
    """Change the outputs in the first golden file, as if from another checkpoint."""
    path = sandbox.golden_file()
    arrays = load_file(path)
    # Outputs of components; the other values are inputs.
    made = (*(f"{row}." for row in family_named(sandbox.manifest.family).rows), LAST.key, MADE.key)
    save_tensors({name: value[..., ::-1] if name.startswith(made) else value for name, value in arrays.items()}, path)


def nan_in_golden(sandbox: Sandbox) -> None:
    """Write one NaN into the first golden file."""
    path = sandbox.golden_file()
    arrays = load_file(path)
    arrays[LAST.key].reshape(-1)[0] = np.nan
    save_tensors(arrays, path)


def recorded_from_broken(sandbox: Sandbox) -> None:
    """Flip one block of a weight and take the golden outputs from that artifact, so that every run agrees."""
    recorded_after(sandbox, flip_block)


def recorded_after(sandbox: Sandbox, damage: Callable[[Sandbox], None]) -> None:
    """Apply ``damage`` and take the golden outputs from the damaged artifact."""
    damage(sandbox)
    _record(sandbox)


def recorded_from_artifact(sandbox: Sandbox) -> None:
    """Take the golden outputs from the decoder's artifact, so that its losses are in the reference, too."""
    _record(sandbox)


def _record(sandbox: Sandbox) -> None:
    image_of = family_named(sandbox.manifest.family).image
    if sandbox.component != image_of.node:
        raise NotApplicable("the export has no decoder, whose output no other component takes")
    recipe, runner = sandbox.manifest.recipe, sandbox.target.load(sandbox.artifact())
    for case, item in zip(sandbox.golden.cases, sandbox.golden.index.cases, strict=True):
        image = only_output(runner.run(inputs_of(recipe, sandbox.entry, case)))
        path = sandbox.folder / sandbox.golden.folder.name / item.file
        make_own(path)
        save_tensors({**load_file(path), image_of.key: image, MADE.key: picture_from(image)}, path)


def exact_by_itself(sandbox: Sandbox) -> None:
    """Do :func:`recorded_from_artifact` if the scheme cannot be exact."""
    if math.isinf(most_snr_db(sandbox.manifest.recipe.schemes[sandbox.component])):
        raise NotApplicable("its scheme may be exact")
    _record(sandbox)


def exchange_words(sandbox: Sandbox, golden: bool = True) -> None:
    """Exchange the ids of two words in the tokenizer, from a golden prompt or from none; or of two class names."""
    folder, value = next(iter(family_named(sandbox.manifest.family).tokens.items()))
    held = sandbox.golden.cases[0].values
    ids = next(held[key] for key in (value.key, f"{value.key}.1") if key in held).ravel().tolist()
    tables = [path for name in _TABLES if (path := sandbox.folder / folder / name).is_file()]
    if not tables:
        raise NotApplicable("it has no tokenizer")
    used = {
        int(number)
        for case in sandbox.golden.cases
        for key in case.values
        if key.startswith(value.key)
        for number in case.values[key].ravel()
    }
    for path in tables:
        edit_json(path, lambda content: _exchange(content, ids if golden else None, used))


def _exchange(content: Json, ids: Sequence[int] | None, used: Collection[int]) -> None:
    are_classes = content.keys() == _LABELS_FIELDS
    table: Any = content["names"] if are_classes else content.get("model", {}).get("vocab", content)
    # T5's table is a list indexed by id; its special tokens come first.
    words: dict[int, Any] = {number: number for number in range(len(table))}
    if isinstance(table, dict):
        # The first name of a class with several names.
        pairs = sorted(table.items(), key=lambda item: int(item[1]))
        words = {number: word for word, number in reversed(pairs) if are_classes or word.endswith("</w>")}
    chosen = [number for number in reversed(words) if number not in used]
    if ids is not None:
        mine = [number for number in dict.fromkeys(ids) if number in words]
        # A class prompt has only one id.
        chosen = [*mine, *chosen] if are_classes and mine else mine
    if len(chosen) < 2:
        raise NotApplicable("its tokenizer has no two words to exchange")
    first, second = (words[number] for number in chosen[:2])
    table[first], table[second] = table[second], table[first]


def add_token(sandbox: Sandbox) -> None:
    """Add a word to the tokenizer, in a file that tokenizers read and the checkpoint does not have."""
    folder = sandbox.folder / next(iter(family_named(sandbox.manifest.family).tokens))
    (folder / "added_tokens.json").write_text('{"<trigger>": 5}\n', encoding="utf-8")


def other_timestep(sandbox: Sandbox) -> None:
    """Change the timestep in every artifact's metadata, the index and the manifest; no artifact reads it there."""
    if sandbox.manifest.steps:
        raise NotApplicable("it takes many steps")
    other_note(sandbox, "timestep")
    step = int(sandbox.target.describe(sandbox.artifact()).notes["timestep"])
    index_and_manifest(lambda values: values["one_step"].update(timestep=step))(sandbox)


def remove_case(sandbox: Sandbox) -> None:
    """Remove the last golden case from files, index and manifest."""
    name = sandbox.golden.index.cases[-1].file
    (sandbox.folder / GOLDEN_FOLDER / name).unlink()
    sandbox.edit_index(lambda index: index["cases"].pop())
    sandbox.edit_manifest(lambda manifest: manifest["files"].pop(f"{GOLDEN_FOLDER}/{name}", None))


def remove_prompt(sandbox: Sandbox) -> None:
    """Remove the last golden case, and its prompt from the recipe."""
    remove_case(sandbox)
    sandbox.edit_manifest(lambda manifest: manifest["recipe"]["golden"]["prompts"].pop())


def remove_component(manifest: Json) -> None:
    """Remove the last component from manifest and recipe, like in an export of the others."""
    if not manifest["artifacts"][1:]:
        raise NotApplicable("it has one component")
    del manifest["artifacts"][-1], manifest["recipe"]["components"][-1]


def other_case(sandbox: Sandbox) -> None:
    """Add a file to the golden folder that the index does not list."""
    shutil.copyfile(sandbox.golden_file(), sandbox.folder / GOLDEN_FOLDER / "case-999.safetensors")


def remove_merge(sandbox: Sandbox) -> None:
    """Remove the tokenizer's last merge; no golden prompt needs it."""
    path = sandbox.folder / "tokenizer" / "merges.txt"
    if not path.is_file():
        raise NotApplicable("its tokenizer has no file of merges")
    make_own(path)
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:-1]) + "\n", encoding="utf-8")


def list_stranger(sandbox: Sandbox) -> None:
    """Add a file that does not come from the checkpoint, with its hash in the manifest."""
    (sandbox.folder / "app.json").write_text("{}", encoding="utf-8")
    sandbox.edit_manifest(lambda manifest: manifest["files"].update({"app.json": "0" * 64}))


def rename_file(sandbox: Sandbox) -> None:
    """Rename the artifact, also in the manifest."""
    name = f"new_{sandbox.entry.file}"
    sandbox.artifact().rename(sandbox.folder / name)
    sandbox.edit_entry(lambda entry: entry.update(file=name))


def app_file(sandbox: Sandbox) -> None:
    """Change a constant in the file that an app of the layout reads."""
    for name in ("schedule.json", "metadata.json"):
        if (sandbox.folder / name).is_file():
            edit_json(sandbox.folder / name, lambda values: values.get("one_step", values).update(a=0.5))
            return
    raise NotApplicable("its layout has no file of constants")


def index(change: Change) -> Callable[[Sandbox], None]:
    """Edit the golden index."""
    return lambda sandbox: sandbox.edit_index(change)


def manifest(change: Change) -> Callable[[Sandbox], None]:
    """Edit the manifest."""
    return lambda sandbox: sandbox.edit_manifest(change)


def entry(change: Change) -> Callable[[Sandbox], None]:
    """Edit the component's entry in the manifest."""
    return lambda sandbox: sandbox.edit_entry(change)


def index_and_manifest(change: Change) -> Callable[[Sandbox], None]:
    """Edit the golden index and the manifest, which then agree with each other but not with the artifacts."""

    def damage(sandbox: Sandbox) -> None:
        sandbox.edit_index(change)
        sandbox.edit_manifest(change)

    return damage


def other_hash(field: str) -> Change:
    """Replace a hash of an index, a manifest or an entry."""
    return lambda values: values.update({field: "0" * 64})


def negate_step(values: Json) -> None:
    """Negate b of x0 = a·noise + b·output in an index or a manifest; for many steps, in each."""
    for step in (values["one_step"], *(values.get("steps") or {"steps": ()})["steps"]):
        step["b"] *= -1


def drop_threshold(values: Json) -> None:
    """Set a threshold in a manifest to a value that everything meets."""
    values["recipe"]["picture_psnr_db"] = -math.inf


def toggle_zeros(values: Json) -> None:
    """Toggle whether guidance steers away from zeros or from the empty prompt."""
    values["zeros_for_empty"] = not values.get("zeros_for_empty", False)


def reverse_cases(values: Json) -> None:
    """Reverse the order of the golden cases."""
    values["cases"].reverse()


def claim_rewrite(values: Json) -> None:
    """Claim a function-changing rewrite in the golden index."""
    values["rewrites"] = ["gelu_to_swish"]


def exchange_case_names(values: Json) -> None:
    """Exchange the names of the first two cases."""
    first, second = values["cases"][:2]
    first["name"], second["name"] = second["name"], first["name"]


def other_checkpoint_file(values: Json) -> None:
    """Replace the hash of one of the checkpoint's files."""
    files = values["checkpoint_files"]
    files[min(files)] = "0" * 64


def claim_lora(values: Json) -> None:
    """Add a LoRA that was not used."""
    values["loras"] = [{"name": "x", "sha256": "0" * 64, "scale": 1.0, "components": ["unet"]}]


def other_noise(values: Json) -> None:
    """Change the noise schedule, from which image-to-image computes its start."""
    values["schedule"] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.1,
        "beta_end": 0.2,
        "beta_schedule": "linear",
    }


def exchange_shapes(values: Json) -> None:
    """Exchange the shapes of the first and the last input."""
    specs = values["inputs"]
    if len(specs) < 2:
        specs[0]["shape"] = specs[0]["shape"][::-1]
    else:
        specs[0]["name"], specs[-1]["name"] = specs[-1]["name"], specs[0]["name"]


def shrink_output(values: Json) -> None:
    """Shrink an output's shape to one row, to which the true shape could be broadcast."""
    values["outputs"][0]["shape"][-1] = 1


def other_weights(values: Json) -> None:
    """Claim another type of the artifact's weights."""
    values["weights"] = "int8" if values["weights"] == "int4" else "int4"


def claim_int8(sandbox: Sandbox) -> None:
    """Claim int8 for float weights in the manifest and its recipe."""
    component, weights = sandbox.component, sandbox.entry.weights
    if not weights.startswith("float"):
        raise NotApplicable(f"its weights are {weights}, not float")
    sandbox.edit_entry(lambda values: values.update(weights="int8"))
    sandbox.edit_manifest(lambda values: values["recipe"]["schemes"][component].update(weights="int8"))
