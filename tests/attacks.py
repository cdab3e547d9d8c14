"""Hostile checkpoints, recipes, goldens and journals: how each is made, how it is opened, what must be said.

docs/security.md lists them by name, and a test holds the two against each other.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

TEXT: Final = "text_encoder/model.safetensors"
UNET: Final = "unet/diffusion_pytorch_model.safetensors"
BIN: Final = "unet/diffusion_pytorch_model.bin"
SECRET: Final = "not for the world"  # noqa: S105 (the text that no export may carry)


@dataclass(frozen=True)
class Attack:
    """``plant`` spoils a checkpoint folder, ``act`` uses it; ``says``: of the error, None where it is harmless."""

    plant: Callable[[Path], Any]
    says: str | None
    act: Callable[[Path], Any]


def prepare(folder: Path) -> None:
    """One sound checkpoint that each attack gets a copy of."""
    from checkpoint.test_checkpoint import CONFIG
    from md_export.checkpoint.architectures import write_checkpoint

    write_checkpoint(folder / "sound", CONFIG, seed=1, dtype="float32")
    (folder / "secret.txt").write_text(SECRET)


def steps(attack: Attack, folder: Path, name: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What uses a copy of the checkpoint, and what makes and spoils it before."""
    copy = folder / name.replace(" ", "-").replace("/", "-")

    def plant() -> None:
        shutil.copytree(folder / "sound", copy)
        attack.plant(copy)

    return partial(attack.act, copy), plant


# How they are opened


def opened(folder: Path) -> None:
    from md_export.checkpoint import open_checkpoint

    open_checkpoint(folder).check()


def loaded(folder: Path, component: str = "unet") -> None:
    from md_export.checkpoint import open_checkpoint

    open_checkpoint(folder).module(component)


def built(folder: Path) -> None:
    """The text encoder, whose config is transformers' own; and nothing of what the config asks for beyond it."""
    from md_export.checkpoint import open_checkpoint
    from md_export.checkpoint.modules import build_on_meta
    from md_export.models.families import component_of

    checkpoint = open_checkpoint(folder)
    assert not set(checkpoint.config.text_encoder) & {"num_labels", "attn_implementation", "auto_map"}
    build_on_meta(component_of(checkpoint.config, "text_encoder"), checkpoint.config)


def tokenized(folder: Path) -> None:
    from md_export.checkpoint import open_checkpoint
    from md_export.models.tokenizers import tokenize

    checkpoint = open_checkpoint(folder)
    assert tokenize(checkpoint.tokenizer_dir, "a" * 4000 + "!", 77).shape == (1, 77)
    (folder / "copied").mkdir()
    checkpoint.copy_tokenizers(folder / "copied")
    copied = sorted((folder / "copied" / "tokenizer").iterdir())
    assert "evil" not in " ".join(file.name for file in copied)
    assert not any(SECRET in file.read_text(errors="replace") for file in copied)


def golden(folder: Path) -> None:
    from md_export.parity.golden.folder import read_golden

    read_golden(folder / "golden")


def manifest(folder: Path) -> None:
    from md_export.spec.manifest import read_manifest

    read_manifest(folder)


def recipe(folder: Path) -> None:
    from md_export.spec.recipe_file import load_recipe

    load_recipe(folder / "recipe.toml")


def matched(folder: Path) -> None:
    """A recipe whose globs meet long module paths."""
    from md_export.spec.recipe_file import load_recipe

    scheme = load_recipe(folder / "recipe.toml").schemes["unet"]
    for length in (50, 500, 5000):
        assert not scheme.keeps_float("a" * length)
        scheme.for_module("a" * length)


def journal(folder: Path) -> None:
    from md_export.engine.search.measuring import Key, open_journal

    with open_journal(folder / "journal.jsonl", Key("", "onnx", (), (), (), "nearest", "", {})):
        pass


def inputs(folder: Path) -> None:
    from md_export.spec.tensors import read_npz

    read_npz(folder / "inputs.npz")


# How they are made


def text(name: str, content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(content)


def edit(name: str, **changes: Any) -> Callable[[Path], Any]:
    def plant(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return plant


def link(name: str, to: str) -> Callable[[Path], Any]:
    def plant(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return plant


def pipe(name: str) -> Callable[[Path], Any]:
    def plant(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return plant


def sparse(name: str, size: int, start: bytes = b"") -> Callable[[Path], Any]:
    """A file as large as ``size`` that takes no room."""

    def plant(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.write(start)
            file.truncate(size)

    return plant


def header(content: Any, length: int | None = None, values: bytes = b"\0" * 64) -> Callable[[Path], Any]:
    """A safetensors file for the UNet."""
    raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    return lambda folder: (folder / UNET).write_bytes(
        (len(raw) if length is None else length).to_bytes(8, "little") + raw + values
    )


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


class Call:
    """Pickled, it asks to call ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.arguments = (function, arguments)

    def __reduce__(self) -> Any:
        return self.arguments


def torch_file(
    content: Any, record: str = "archive/data.pkl", method: int = zipfile.ZIP_STORED
) -> Callable[[Path], Any]:
    """A ``.bin`` file for the UNet as ``torch.save`` would write it, but with any content."""

    def plant(folder: Path) -> None:
        (folder / UNET).unlink()
        with zipfile.ZipFile(folder / BIN, "w", method) as archive:
            archive.writestr(record, pickle.dumps(content, protocol=2) if not isinstance(content, bytes) else content)
            archive.writestr("archive/version", "3\n")

    return plant


def stretched(folder: Path) -> None:
    """A tensor of 10⁹ elements that are all the same four bytes, as large as the config says."""
    import torch

    edit("unet/config.json", cross_attention_dim=1000)(folder)
    edit("text_encoder/config.json", vocab_size=10**6, hidden_size=1000, intermediate_size=2)(folder)
    (folder / TEXT).unlink()
    torch.save(
        {"embeddings.token_embedding.weight": torch.zeros(1).expand(10**6, 1000)},
        folder / "text_encoder/pytorch_model.bin",
    )


def legacy(folder: Path) -> None:
    """The format of before 2020, with a call where the content should be."""
    (folder / UNET).unlink()
    parts: tuple[Any, ...] = (0x1950A86A20F9469CFC6C, 1001, {}, {"conv_in.weight": Call(bytearray, 10**11)}, [])
    (folder / BIN).write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))


def sharded(entries: int) -> Callable[[Path], Any]:
    def plant(folder: Path) -> None:
        (folder / UNET).rename(folder / "unet/a.safetensors")
        where = {f"t{number}": "a.safetensors" for number in range(entries)}
        (folder / (UNET + ".index.json")).write_text(json.dumps({"weight_map": where}))

    return plant


def golden_folder(**changes: Any) -> Callable[[Path], Any]:
    """One case of the shipped goldens, listed as ``changes`` say."""

    def plant(folder: Path) -> None:
        from md_export.spec.shipped_files import nano_checkpoint

        source = nano_checkpoint() / "golden"
        index = json.loads((source / "index.json").read_text())
        case = {**index["cases"][0], **changes.get("case", {})}
        (folder / "golden").mkdir()
        shutil.copy(source / index["cases"][0]["file"], folder / "golden")
        index["cases"] = [case] * changes.get("times", 1)
        (folder / "golden/index.json").write_text(json.dumps(index))
        changes.get("then", lambda _: None)(folder / "golden")

    return plant


def recipe_with(scheme: str = "", **fields: str) -> Callable[[Path], Any]:
    """A recipe of ours with one more line in ``[scheme]``, and fields in other tables replaced."""

    def plant(folder: Path) -> None:
        from md_export.spec.shipped_files import builtin_recipe

        lines = builtin_recipe("coreml", "fp16").read_text().replace("[scheme]", f"[scheme]\n{scheme}", 1)
        head, plan = lines.split("[golden]")
        content = head if "golden" in fields else f"{head}[golden]{plan}"
        content = content.replace('name = "coreml-fp16"', fields.get("name", 'name = "x"'), 1)
        (folder / "recipe.toml").write_text(content + fields.get("golden", "") + fields.get("end", ""))

    return plant


def zeros(folder: Path) -> None:
    """An archive whose directory says that its one member has 4 GB."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a.npy", bytes(123_457))
    (folder / "inputs.npz").write_bytes(made.getvalue().replace(struct.pack("<I", 123_457), b"\xf0\xff\xff\xff"))


def huge_array(folder: Path) -> None:
    raw = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000)}".ljust(118) + b"\n"
    with zipfile.ZipFile(folder / "inputs.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw)


def regex_tokenizer(folder: Path) -> None:
    """A pre-tokenizer whose pattern takes exponential time where it fails."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = json.loads((folder / "tokenizer/vocab.json").read_text())
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<|endoftext|>"))  # noqa: S106 (a token of text)
    made.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    made.save(str(folder / "tokenizer/tokenizer.json"))


ONES: Final = "[" + "1," * 10_000 + "]"
WORDS: Final = "[" + "'a'," * 10_000 + "]"
SLOW: Final = "*a" * 120 + "*b"
DEEP: Final = "[" * 100_000
NESTED: Final = '{"a":' * 100_000
TOKENS: Final = "tokenizer/vocab.json"
MANY: Final = {f"t{number}": tensor([0], [0, 0]) for number in range(160_000)}
ELSEWHERE: Final = "not a file of this checkpoint"
DAMAGED: Final = "truncated or damaged"
CODE: Final = "would run code"
CONTROL: Final = "holds a control character"
SHAPES: Final = "of another shape|missing|" + DAMAGED

ATTACKS: Final[Mapping[str, Attack]] = {
    # Names and places
    "names that lead outside in model_index.json": Attack(
        edit("model_index.json", unet=["../../x", "/etc/passwd"], **{"../x": ["os", "system"]}), None, opened
    ),
    "a config that is a pipe": Attack(pipe("unet/config.json"), "is missing", opened),
    "a config that is a device": Attack(link("unet/config.json", "/dev/zero"), "is missing", opened),
    "weights that are a pipe": Attack(pipe(UNET), "holds no weights", opened),
    "weights that are a device": Attack(link(UNET, "/dev/zero"), "holds no weights", opened),
    "a link to itself": Attack(link("unet/config.json", "config.json"), "is missing", opened),
    "a parent that is a device folder": Attack(
        text("sibling.json", '{"parent": "../../../../../../../../dev"}'), None, opened
    ),
    "tokenizer linked to a private file": Attack(
        link("tokenizer/merges.txt", "../../secret.txt"), ELSEWHERE, tokenized
    ),
    "tokenizer that is a pipe": Attack(pipe("tokenizer/tokenizer_config.json"), ELSEWHERE, tokenized),
    "tokenizer that is a device": Attack(link("tokenizer/added_tokens.json", "/dev/zero"), ELSEWHERE, tokenized),
    "strangers beside the tokenizer": Attack(link("tokenizer/evil.bin", "/dev/zero"), None, tokenized),
    "a folder linked beside the tokenizer": Attack(link("tokenizer/evil", "/"), None, tokenized),
    # Weights
    "a header of 2⁶³ bytes": Attack(header({}, 1 << 63), DAMAGED, loaded),
    "a header of 64 MB": Attack(sparse(UNET, 80 << 20, (64 << 20).to_bytes(8, "little")), "has a header of", loaded),
    "160,000 empty tensors": Attack(header(MANY), "has a header of", loaded),
    "overlapping tensors": Attack(header({"a": tensor([8], [0, 32]), "b": tensor([8], [16, 48])}), DAMAGED, loaded),
    "negative offsets": Attack(header({"a": tensor([8], [-32, 0])}), DAMAGED, loaded),
    "offsets beyond the file": Attack(header({"a": tensor([10**9], [0, 4 * 10**9])}), DAMAGED, loaded),
    "10⁹ elements in 1 KB": Attack(header({"conv_in.weight": tensor([10**9], [0, 64])}), DAMAGED, loaded),
    "a shape whose product overflows": Attack(header({"a": tensor([1 << 32] * 4, [0, 64])}), DAMAGED, loaded),
    "an unknown type": Attack(header({"a": tensor([16], [0, 64], "F128")}), DAMAGED, loaded),
    "a type of other width": Attack(header({"conv_in.weight": tensor([16], [0, 64], "I32")}), "as int32", loaded),
    "duplicate tensors": Attack(
        header(
            '{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
        ),
        SHAPES,
        loaded,
    ),
    "a deeply nested header": Attack(header('{"a":' + DEEP), DAMAGED, loaded),
    "a tensor name of a megabyte": Attack(header({"\x1b" * (1 << 18): tensor([16], [0, 64])}), "extra", loaded),
    "an index of 10⁵ tensors": Attack(sharded(100_000), "lists 100,000 tensors", loaded),
    # Pickles
    "a pickle that allocates bytes": Attack(torch_file({"a": Call(bytearray, 10**11)}), CODE, loaded),
    "a pickle that imports later": Attack(torch_file(pickle.dumps(Call(os.getcwd), protocol=4)), CODE, loaded),
    "a pickle under another case": Attack(torch_file({"a": Call(bytearray, 10**11)}, "archive/DATA.PKL"), CODE, loaded),
    "a pickle of before 2020": Attack(legacy, CODE, loaded),
    "a compressed archive": Attack(torch_file(bytes(20 << 20), method=zipfile.ZIP_DEFLATED), "is compressed", loaded),
    "10⁹ elements in four bytes": Attack(stretched, "too few for this", partial(loaded, component="text_encoder")),
    # Configs
    "10⁹ labels": Attack(edit("text_encoder/config.json", num_labels=10**9), None, built),
    "an attention from the hub": Attack(
        edit("text_encoder/config.json", attn_implementation="evil/kernel", auto_map={"AutoModel": "evil--x.Y"}),
        None,
        built,
    ),
    "10⁹ layers": Attack(edit("text_encoder/config.json", num_hidden_layers=10**9), "is absurd", opened),
    "10⁹ channels": Attack(edit("unet/config.json", block_out_channels=[32, 32, 10**9 // 48 * 48]), "billion", opened),
    "a picture of 10⁹ pixels": Attack(edit("unet/config.json", sample_size=4096), "is absurd", opened),
    "a number of 5,000 digits": Attack(text("unet/config.json", '{"sample_size": ' + "9" * 5000 + "}"), "", opened),
    "a deeply nested config": Attack(text("vae/config.json", NESTED), "recursion limit", opened),
    # Tokenizers
    "a vocabulary of 64 MB": Attack(sparse(TOKENS, 64 << 20), "is larger than", tokenized),
    "a vocabulary without its end": Attack(
        text(TOKENS, json.dumps({f"w{number}": number % 500 for number in range(10**5)})),
        "no CLIP tokenizer",
        tokenized,
    ),
    "a deeply nested vocabulary": Attack(text(TOKENS, NESTED), "recursion limit", tokenized),
    "merges of 64 MB": Attack(sparse("tokenizer/merges.txt", 64 << 20), "is larger than", tokenized),
    "a deeply nested tokenizer": Attack(text("tokenizer/tokenizer.json", DEEP), "recursion limit", tokenized),
    "a deeply nested tokenizer config": Attack(
        text("tokenizer/tokenizer_config.json", NESTED), "recursion limit", tokenized
    ),
    "a tokenizer config with arguments": Attack(
        edit("tokenizer/tokenizer_config.json", init_inputs=["/dev/zero"]), "has init_inputs", tokenized
    ),
    "a tokenizer config with paths": Attack(
        edit("tokenizer/tokenizer_config.json", vocab_file="/dev/zero"), "has vocab_file", tokenized
    ),
    "a chat template": Attack(sparse("tokenizer/chat_template.jinja", 1 << 40), "remove it", tokenized),
    "a tokenizer with a slow pattern": Attack(regex_tokenizer, None, tokenized),
    "a tokenizer of wrong types": Attack(
        text("tokenizer/tokenizer.json", '{"model": {"type": "BPE", "vocab": 1}, "added_tokens": 7}'), "", tokenized
    ),
    # Goldens, manifests, journals, inputs
    "a golden case outside its folder": Attack(golden_folder(case={"file": "../sound"}), "not a plain name", golden),
    "a golden case that is a device": Attack(
        golden_folder(then=link("case-000.safetensors", "/dev/zero")), "missing", golden
    ),
    "a golden case of a terabyte": Attack(
        golden_folder(then=sparse("case-000.safetensors", 1 << 40)), "larger", golden
    ),
    "10⁵ golden cases in one file": Attack(golden_folder(times=50_000), "lists a file twice", golden),
    "a golden prompt that moves the cursor": Attack(golden_folder(case={"prompt": "a\x1b[2Jcat"}), CONTROL, golden),
    "a deeply nested golden index": Attack(golden_folder(then=text("index.json", NESTED)), "recursion limit", golden),
    "a manifest that is a device": Attack(link("manifest.json", "/dev/zero"), "holds no manifest", manifest),
    "a deeply nested manifest": Attack(text("manifest.json", DEEP), "recursion limit", manifest),
    "a manifest of a terabyte": Attack(sparse("manifest.json", 1 << 40), "is larger than", manifest),
    "a journal that is a pipe": Attack(pipe("journal.jsonl"), "not a regular file", journal),
    "a journal that is a device": Attack(link("journal.jsonl", "/dev/zero"), "not a regular file", journal),
    "a journal of a terabyte": Attack(sparse("journal.jsonl", 1 << 40), "is larger than", journal),
    "a deeply nested journal": Attack(text("journal.jsonl", DEEP + "\n"), "no journal", journal),
    "inputs that unpack to 4 GB": Attack(zeros, "unpacks to more", inputs),
    "an input of 10¹⁸ elements": Attack(huge_array, "not an .npz", inputs),
    # Recipes
    "a recipe that is a pipe": Attack(pipe("recipe.toml"), "not a regular file", recipe),
    "a recipe that is a device": Attack(link("recipe.toml", "/dev/zero"), "not a regular file", recipe),
    "a recipe of a terabyte": Attack(sparse("recipe.toml", 1 << 40), "not a regular file", recipe),
    "a recipe with a number of 5,000 digits": Attack(
        text("recipe.toml", "a = " + "9" * 5000), "not valid TOML", recipe
    ),
    "a recipe of nested arrays": Attack(text("recipe.toml", "a = " + "[" * 50_000), "not valid TOML", recipe),
    "a recipe of nested tables": Attack(text("recipe.toml", "a = " + "{a=" * 30_000), "not valid TOML", recipe),
    "a recipe with a key of 60,000 parts": Attack(text("recipe.toml", "a." * 60_000 + "b = 1"), "", recipe),
    "a recipe with a table of 60,000 parts": Attack(text("recipe.toml", "[" + "a." * 60_000 + "b]"), "", recipe),
    "a recipe of 10,000 tables": Attack(
        text("recipe.toml", "".join(f"[a{number}]\n" for number in range(10_000))), "", recipe
    ),
    "a recipe of 10,000 unknown fields": Attack(
        text("recipe.toml", "".join(f"a{number}=1\n" for number in range(10_000))), "unknown field", recipe
    ),
    "10⁸ cases": Attack(recipe_with(golden=f"[golden]\nprompts = {WORDS}\nseeds = {ONES}\n"), "cases", recipe),
    "10⁸ calibration cases": Attack(
        recipe_with(end=f"[calibration]\nprompts = {WORDS}\nseeds = {ONES}\n"), "cases", recipe
    ),
    "a seed of 30 digits": Attack(
        recipe_with(golden=f"[golden]\nprompts = ['a']\nseeds = [{10**30}]\n"), "seeds", recipe
    ),
    "a prompt of 100 KB": Attack(
        recipe_with(golden="[golden]\nprompts = ['" + "a" * 100_000 + "']\n"), "characters", recipe
    ),
    "a prompt that moves the cursor": Attack(
        recipe_with(golden='[golden]\nprompts = ["a\\u001b[2Jcat"]\n'), CONTROL, recipe
    ),
    "a prompt that turns around": Attack(recipe_with(golden='[golden]\nprompts = ["a\u202ecat"]\n'), CONTROL, recipe),
    "a name that leads outside": Attack(recipe_with(name='name = "../../x"'), "could not name a file", recipe),
    "a name with styles": Attack(recipe_with(name='name = "[/red]x"'), "could not name a file", recipe),
    "a glob that backtracks": Attack(
        recipe_with(f'keep_float = ["{SLOW}"]\nrules = [{{modules=["{SLOW}"], weights="float32"}}]'), None, matched
    ),
    "a glob of 100 KB": Attack(recipe_with("keep_float = ['" + "*a" * 50_000 + "']"), "globs", recipe),
    "10,000 globs": Attack(recipe_with(f"keep_float = {WORDS}"), "globs", recipe),
}
