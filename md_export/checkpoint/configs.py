"""Read the config files of a checkpoint folder; every field is checked before a module is built from them."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, TypeVar

from md_export.checkpoint.files import TABLE_LIMIT, Layout, read_json, shown
from md_export.checkpoint.quantized import QUANTIZATION, refuse_quantized_config
from md_export.checkpoint.recognize import INDEX, family_in
from md_export.errors import CheckpointError, ConfigError
from md_export.models.adapter import AdapterConfig
from md_export.models.config import Config, ModelConfig
from md_export.models.sampling.sampler import SCHEDULERS
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.t5_encoder import LENGTHS, T5_CLASS, T5Config
from md_export.models.tiny_autoencoder import TINY_CLASS, TinyConfig
from md_export.models.vae import VAEConfig

ConfigT = TypeVar("ConfigT", bound=Config)


# Limits of sizes that take memory before parameters are counted: several times those of any known model of this kind.
_LARGEST: Final[Mapping[str, int]] = {
    "down_layers": 256,
    "up_layers": 256,
    "layers_per_block": 256,
    "transformer_layers_per_block": 256,
    "decoder_layers_per_block": 256,
    "num_hidden_layers": 256,
    "sample_size": 256,
    "num_res_blocks": 64,
    "num_encoder_blocks": 64,
    "num_decoder_blocks": 64,
    "max_position_embeddings": 1024,
    "num_train_timesteps": 100_000,
    "num_layers": 256,
    "num_heads": 256,
    "num_attention_heads": 256,
    "attention_head_dim": 4096,
    "relative_attention_max_distance": 4096,
}
# Counts that can be 0.
_FROM_ZERO: Final = (
    "steps_offset",
    "freq_shift",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
)
# Numbers that can be negative or infinite.
_ANY_NUMBER: Final = ("lambda_min_clipped",)
_LEVELS: Final = 16
_NAMED_TOKENS: Final = 5
SCHEDULER: Final = "scheduler/scheduler_config.json"
_TEXT_SIZES: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
# The only fields that are passed to CLIPTextModel: those that change its output. transformers has hundreds of others;
# some allocate memory (num_labels) or download code (attn_implementation).
_TEXT_FIELDS: Final = (
    *_TEXT_SIZES,
    "projection_dim",
    "hidden_act",
    "layer_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def read_model_config(layout: Layout) -> ModelConfig:
    """Return all configs of a checkpoint; :class:`CheckpointError` and :class:`ConfigError` name the file."""
    family = family_in(layout)
    index = read_json(index_file) if (index_file := layout.find(INDEX)) else {}
    form, folder = family.form, family.form.denoiser.FOLDER
    classes = {name: form.classes[name][1] for name in ("text_encoder", "text_encoder_2") if name in form.classes}
    texts = {name: _text_config(layout, name) for name, kind in classes.items() if kind != T5_CLASS}
    denoiser = read_json(layout.require(f"{folder}/config.json"))
    denoiser = {name: value for name, value in denoiser.items() if name != "trained_substitutions"}
    vae = read_json(layout.require("vae/config.json"))
    tiny = vae.get("_class_name") == TINY_CLASS
    adapter, controlnet = (layout.find(f"{name}/config.json") for name in ("t2i_adapter", "controlnet"))
    for name, file in (("t2i_adapter", adapter), ("controlnet", controlnet)):
        if file is not None and name not in family.rows:
            raise ConfigError(f"{name}/ exists, but {form.title} does not support it: remove it")
    scheduler = read_json(layout.require(SCHEDULER))
    config = ModelConfig(
        text_encoder=texts.get("text_encoder", {}),
        text_encoder_2=texts.get("text_encoder_2"),
        t5=_t5_config(layout) if T5_CLASS in classes.values() else None,
        denoiser=parse_config(form.denoiser, folder, denoiser),
        vae=parse_config(TinyConfig, "vae", vae) if tiny else parse_config(VAEConfig, "vae", {**form.vae, **vae}),
        schedule=parse_config(ScheduleConfig, "scheduler", scheduler),
        adapter=None if adapter is None else parse_config(AdapterConfig, "t2i_adapter", read_json(adapter)),
        controlnet=parse_config(form.controlnet, "controlnet", read_json(controlnet))
        if controlnet and form.controlnet
        else None,
        zeros_for_empty=form.zeros_for_empty and index.get("force_zeros_for_empty_prompt") is not False,
        method=SCHEDULERS.get(str(scheduler.get("_class_name", "DDIMScheduler"))),
    )
    config.check()
    return config


def _text_config(layout: Layout, folder: str) -> dict[str, object]:
    """Return the supported fields of a text encoder's ``config.json``, with checked sizes."""
    file = f"{folder}/config.json"
    text = read_json(layout.require(file))
    refuse_quantized_config(text, file)
    for field in _TEXT_SIZES:
        if field in text:
            _value(f"{file}: {field}", field, text[field], int)
    if "layer_norm_eps" in text:
        _value(f"{file}: layer_norm_eps", "layer_norm_eps", text["layer_norm_eps"], float)
    return {field: text[field] for field in _TEXT_FIELDS if field in text}


def _t5_config(layout: Layout) -> T5Config:
    """Return the supported fields of T5's ``config.json``, and the length of a prompt by the pipeline's class."""
    text = read_json(layout.require("text_encoder/config.json"))
    refuse_quantized_config(text, "text_encoder/config.json")
    if text.get("model_type") != "t5":
        raise ConfigError(
            f"text_encoder/config.json: only model_type='t5' is supported, not {text.get('model_type')!r}"
        )
    index = layout.find("model_index.json")
    pipeline = str(read_json(index).get("_class_name")) if index else ""
    known = {field.name for field in dataclasses.fields(T5Config)}
    read = {name: value for name, value in text.items() if name in known}
    return parse_config(T5Config, "text_encoder", {**read, "length": LENGTHS.get(pipeline, T5Config.length)})


def read_trained_substitutions(layout: Layout, folder: str) -> tuple[str, ...]:
    """Return ``trained_substitutions`` of a denoiser's ``config.json``: rewrites that the weights were trained with."""
    file = f"{folder}/config.json"
    names = read_json(layout.require(file)).get("trained_substitutions", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{file}: trained_substitutions must be a list of rewrite names, not {names!r:.80}")
    return tuple(names)


def check_vocabulary(folder: Path, encoder: str, config: Mapping[str, Any]) -> None:
    """Raise :class:`CheckpointError` if a tokenizer file has an id without a row in the text encoder."""
    rows = int(config.get("vocab_size", 49408))
    path = folder / "vocab.json"
    ids = [value for value in _table(path).values() if isinstance(value, int)]
    if path.is_file() and (not ids or max(ids) >= rows or min(ids) < 0):
        span = f"{min(ids)} to {max(ids)}" if ids else "none"
        raise CheckpointError(
            f"{path} has token ids {span}, but {encoder}/config.json has vocab_size={rows}: "
            "the tokenizer and the text encoder are not of the same model"
        )
    model = _table(folder / "tokenizer.json").get("model")
    table = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(table, list) and len(table) > rows:  # T5: a token's id is its index
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has {len(table)} tokens, but {encoder}/config.json has vocab_size={rows}: "
            "the tokenizer and the text encoder are not of the same model"
        )
    added = _table(folder / "added_tokens.json")
    listed = _table(folder / "tokenizer.json").get("added_tokens")
    for entry in listed if isinstance(listed, list) else ():
        added |= {str(entry.get("content")): entry.get("id")} if isinstance(entry, dict) else {}
    without = [token for token, number in added.items() if isinstance(number, int) and number >= rows]
    if without:
        names = ", ".join(map(shown, without[:_NAMED_TOKENS]))
        raise CheckpointError(
            f"{folder} adds {names}, but the text encoder has only {rows} rows: "
            "give the encoder trained with these tokens, or remove them from added_tokens.json and tokenizer.json"
        )


def _table(path: Path) -> dict[str, object]:
    return read_json(path, TABLE_LIMIT) if path.is_file() else {}


def parse_config(kind: type[ConfigT], folder: str, values: Mapping[str, Any]) -> ConfigT:
    """Return ``folder/config.json`` as ``kind``; keys with a leading underscore are diffusers' metadata, ignored.

    Raises:
        CheckpointError: a size is absurd.
        ConfigError: a field is unknown, has a wrong type, or is not supported.
    """
    file, hints = SCHEDULER if folder == "scheduler" else f"{folder}/config.json", typing.get_type_hints(kind)
    refuse_quantized_config(values, file)
    known = [field.name for field in dataclasses.fields(kind)]
    parsed = {name: _value(f"{file}: {name}", name, values[name], hints[name]) for name in known if name in values}
    for name, required in kind.REQUIRED.items():
        if values.get(name, required) != required:
            raise ConfigError(f"{file}: only {name}={required!r} is supported, not {values[name]!r}")
    unknown = sorted(
        {name for name in values if not name.startswith("_")} - {*known, *kind.REQUIRED, *kind.IGNORED, QUANTIZATION}
    )
    if unknown:
        raise ConfigError(f"{file}: unknown field {', '.join(unknown)}; known fields: {', '.join(sorted(known))}")
    try:
        return kind(**parsed)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _value(where: str, field: str, value: Any, hint: Any) -> Any:
    """Return ``value`` as the annotated type; raise :class:`ConfigError` for another type or a number out of range."""
    allowed = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and NoneType in allowed:
        return None
    kinds = {typing.get_origin(kind) or kind: kind for kind in allowed if kind is not NoneType}
    lists = kinds.pop(tuple, None)
    if lists is not None and (isinstance(value, list) or not kinds):
        return _values(where, field, value, typing.get_args(lists)[0])
    wanted = next(iter(kinds))
    if wanted is int:
        if not _is_size(value) and not (field in _FROM_ZERO and value == 0):
            raise ConfigError(f"{where} must be a whole number above 0, not {value!r:.80}")
        _check_largest(where, field, value)
    elif wanted is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (field in _ANY_NUMBER or 0 < value < math.inf):
            raise ConfigError(f"{where} must be a finite number above 0, not {value!r:.80}")
        return float(value)
    elif not isinstance(value, wanted):
        raise ConfigError(f"{where} must be {wanted.__name__}, not {value!r:.80}")
    return value


def _check_largest(where: str, field: str, value: int) -> None:
    if value > _LARGEST.get(field, value):
        raise CheckpointError(f"{where}={value} is absurd (the limit is {_LARGEST[field]}): correct the file")


def _values(where: str, field: str, value: Any, item_kind: Any) -> tuple[Any, ...]:
    """Return a list of names or sizes, one for each level; raise :class:`ConfigError` for anything else."""
    if isinstance(item_kind, UnionType):  # sizes, or lists of sizes
        if isinstance(value, list) and 0 < len(value) <= _LEVELS and any(isinstance(item, list) for item in value):
            return tuple(_value(where, field, item, int | tuple[int, ...]) for item in value)
        item_kind = int
    words = "whole numbers above 0" if item_kind is int else "names"

    def fits(item: Any) -> bool:
        return (
            _is_size(item) or (field in _FROM_ZERO and item == 0) if item_kind is int else isinstance(item, item_kind)
        )

    if not isinstance(value, list) or not 0 < len(value) <= _LEVELS or not all(fits(item) for item in value):
        raise ConfigError(f"{where} must be a list of 1 to {_LEVELS} {words}, not {value!r:.80}")
    if item_kind is int:
        _check_largest(where, field, max(value))
    return tuple(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
