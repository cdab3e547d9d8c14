"""The MUTATIONS table: each mutation of an export, and the check that must notice it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

import numpy as np

from md_export.models.graph import Family
from md_export.parity.golden.folder import INDEX
from md_export.parity.metrics import Check
from md_export.parity.selftest import answers, damage, embeddings, graphs, records, styles
from md_export.parity.selftest.answers import Distortion, each_output, on_outputs
from md_export.parity.selftest.graphs import Edit, on_graph
from md_export.parity.selftest.sandbox import Sandbox, halve
from md_export.spec.artifact import GOLDEN_FOLDER
from md_export.spec.given import MANIFEST

# Names of a family's components.
Candidates = Callable[[Family], tuple[str, ...]]


class Hashes(StrEnum):
    """Which recorded hashes were updated to match the damage."""

    KEPT = "hashes kept"
    INDEX = "index agrees"
    ALL = "all agree"


@dataclass(frozen=True)
class Mutation:
    """A mutation of an export. Either ``damage`` changes files, or ``distortion`` changes the runtime's outputs.

    Attributes:
        name: description in words.
        of: kind of thing that is damaged: ``answer``, ``artifact``, ``golden``, ``file``, ``tokenizer``, ``index``,
            ``manifest``.
        caught: check that must notice the damage, for each state of the hashes that is tried.
        components: candidates for the damage, by the family; the first one in the export is used.
        may_crash: whether the runtime needs a separate process.
        audited: whether the stored weights are also compared with the checkpoint.
    """

    name: str
    of: str
    caught: Mapping[Hashes, Check]
    components: Candidates
    damage: Callable[[Sandbox], None] | None = None
    distortion: Distortion | None = None
    may_crash: bool = False
    audited: bool = False


def _small_first(family: Family) -> tuple[str, ...]:
    """Text encoder first: it has the fewest operations, and its last layer is a norm, always stored as float."""
    texts = (row.name for row in family.components if row.called == "per prompt")
    return (*texts, family.image.node, family.denoised.node)


def _picture_first(family: Family) -> tuple[str, ...]:
    """Decoder first: its output is a square picture, and no other component reads it."""
    return family.image.node, family.denoised.node


def _inputs_first(family: Family) -> tuple[str, ...]:
    """Denoiser first: it has several inputs, and only its output has a half for each prompt."""
    return (family.denoised.node,)


def _answer(name: str, check: Check, distortion: Distortion, components: Candidates = _picture_first) -> Mutation:
    return Mutation(name, "answer", {Hashes.KEPT: check}, components, distortion=distortion)


def _artifact(
    name: str,
    deeper: Check,
    damage: Callable[[Sandbox], None],
    components: Candidates = _small_first,
    may_crash: bool = False,
) -> Mutation:
    caught = {Hashes.KEPT: Check.BYTES, Hashes.ALL: deeper}
    return Mutation(name, "artifact", caught, components, damage, may_crash=may_crash, audited=True)


def _beside(name: str, deeper: Check, damage: Callable[[Sandbox], None]) -> Mutation:
    return Mutation(name, "file", {Hashes.KEPT: Check.BYTES, Hashes.ALL: deeper}, _small_first, damage, audited=True)


def _with_checkpoint(name: str, of: str, check: Check, damage: Callable[[Sandbox], None]) -> Mutation:
    return Mutation(name, of, {Hashes.ALL: check}, _small_first, damage, audited=True)


def _graph(
    name: str, edit: Edit, components: Candidates = _picture_first, damage: Callable[[Sandbox], None] | None = None
) -> Mutation:
    return Mutation(name, "graph", {Hashes.ALL: Check.GRAPH}, components, damage or on_graph(edit), audited=True)


def _taken(name: str, edit: Edit) -> Mutation:
    """Return the mutation with the same edit and golden outputs taken from the edited artifact."""
    damage = partial(records.recorded_after, damage=on_graph(edit))
    return _graph(f"{name}, golden outputs taken from it", edit, damage=damage)


def _golden(
    name: str, index: Check, deeper: Check, damage: Callable[[Sandbox], None], audited: bool = False
) -> Mutation:
    caught = {Hashes.KEPT: Check.GOLDEN, Hashes.INDEX: index, Hashes.ALL: deeper}
    return Mutation(name, "golden", caught, _picture_first, damage, audited=audited)


def _index(name: str, check: Check, damage: Callable[[Sandbox], None], agreed: Check | None = None) -> Mutation:
    caught = {Hashes.KEPT: check} | ({} if agreed is None else {Hashes.ALL: agreed})
    return Mutation(name, "index", caught, _small_first, damage)


def _manifest(name: str, check: Check, damage: Callable[[Sandbox], None]) -> Mutation:
    return Mutation(name, "manifest", {Hashes.KEPT: check}, _inputs_first, damage)


# Edits of the decoder, because no other component reads its golden outputs.
_EDITS: Final[Mapping[str, Edit]] = {
    "a padding moved by one": graphs.move_padding,
    "a convolution dilated": graphs.widen_dilation,
    "the epsilon of a norm": graphs.widen_epsilon,
    "another activation": graphs.other_kind,
    "a bias dropped": graphs.drop_bias,
    "a residual cut": graphs.skip_sum,
    "operands exchanged": graphs.exchange_operands,
    "weights exchanged with their names": graphs.exchange_weights,
    "a constant that nothing reads": graphs.add_unread,
}
_OTHER_CHECKPOINT: Final = records.other_hash("checkpoint_sha256")
MUTATIONS: Final[tuple[Mutation, ...]] = (
    _answer("NaN in one value", Check.FINITE, each_output(answers.one_value(np.nan))),
    _answer("Inf in one value", Check.FINITE, each_output(answers.one_value(np.inf))),
    _answer("zeros", Check.FIGURES, each_output(np.zeros_like)),
    _answer("negated output", Check.FIGURES, each_output(np.negative)),
    # With the same noise, two prompts may change the picture by less than the threshold.
    _answer("swapped outputs of two prompts", Check.FIGURES, on_outputs(answers.exchanged), _small_first),
    _answer("swapped inputs of two prompts", Check.FIGURES, answers.inputs_exchanged, _small_first),
    _answer("the prompt's difference lost", Check.GUIDANCE, each_output(answers.without_guidance), _inputs_first),
    _answer("transposed layout, same shape", Check.FIGURES, each_output(answers.transposed)),
    _answer("transposed layout, channels last", Check.SHAPE, each_output(answers.channels_last)),
    _answer("broadcastable shape", Check.SHAPE, each_output(answers.broadcastable)),
    _answer("wrong dtype, float16", Check.DTYPE, each_output(lambda value: value.astype(np.float16))),
    _answer("wrong dtype, float64", Check.DTYPE, each_output(lambda value: value.astype(np.float64))),
    _artifact("NaN in the last layer", Check.FINITE, partial(damage.last_value, wrong=np.nan)),
    _artifact("Inf in the last layer", Check.FINITE, partial(damage.last_value, wrong=np.inf)),
    _artifact("one NaN in a large weight", Check.CONSTANTS, partial(damage.inner_value, wrong=np.nan)),
    _artifact("last layer zero", Check.FIGURES, partial(damage.last_layer_times, factor=0)),
    _artifact("last layer negated", Check.FIGURES, partial(damage.last_layer_times, factor=-1)),
    _artifact("64 bytes of a weight flipped", Check.AUDIT, damage.flip_block),
    _artifact("a square weight transposed", Check.AUDIT, damage.transpose_weight),
    _artifact("all large weights back to front", Check.FIGURES, damage.reverse_weights),
    # A norm after the scaled weights may cancel the factor, and then the figures pass.
    _artifact("all quantization scales doubled", Check.AUDIT, damage.double_scales, _picture_first),
    _artifact("one quantization scale doubled", Check.AUDIT, damage.double_one_scale),
    _artifact("a palette entry moved", Check.AUDIT, damage.move_palette_entry),
    _artifact("float16 overflow behind a softmax", Check.OVERFLOW, damage.on_constants(damage.deepen_mask)),
    _artifact("quantized weights stored as float", Check.STORED, damage.store_as_float),
    _artifact("artifact of another checkpoint", Check.ORIGIN, damage.name_another_checkpoint),
    _artifact("another scaling factor in the metadata", Check.ORIGIN, damage.other_constant),
    *(
        _with_checkpoint(
            f"another {name} in the metadata", "artifact", Check.CHECKPOINT, partial(damage.other_note, name=name)
        )
        for name in ("image_scale", "image_offset", "image_size", "latent_shape", "text_length", "eos_token_id")
    ),
    _with_checkpoint("a file under another name", "artifact", Check.CLAIMS, records.rename_file),
    _with_checkpoint("another timestep everywhere", "artifact", Check.CHECKPOINT, records.other_timestep),
    _with_checkpoint("two files under each other's name", "artifact", Check.CLAIMS, damage.exchange_names),
    *(_graph(name, edit) for name, edit in _EDITS.items()),
    *(_taken(name, edit) for name, edit in _EDITS.items()),
    _graph("another softmax", graphs.other_softmax, _small_first),
    _graph("a weight moved into a Constant node", graphs.hold_inline, _small_first),
    _graph("a trigger on one word", graphs.plant_trigger, _small_first),
    _artifact("artifacts of two components swapped", Check.EXECUTION, damage.exchange_artifacts),
    _artifact("truncated file", Check.EXECUTION, damage.truncate, may_crash=True),
    _golden("stale golden file", Check.BELONGING, Check.FIGURES, records.stale_golden),
    _golden("NaN in a golden file", Check.GOLDEN, Check.GOLDEN, records.nan_in_golden),
    _golden("truncated golden file", Check.GOLDEN, Check.GOLDEN, lambda sandbox: halve(sandbox.golden_file())),
    _golden(
        "golden outputs taken from a broken artifact",
        Check.BELONGING,
        Check.AUDIT,
        records.recorded_from_broken,
        audited=True,
    ),
    _golden(
        "golden outputs taken from the artifact",
        Check.BELONGING,
        Check.REFERENCE,
        records.recorded_from_artifact,
        audited=True,
    ),
    _golden("golden outputs taken from an inexact artifact", Check.BELONGING, Check.EXACT, records.exact_by_itself),
    _with_checkpoint("a golden case struck without a trace", "golden", Check.CASES, records.remove_case),
    _beside("two words of the tokenizer exchanged", Check.TOKENIZER, records.exchange_words),
    _beside("two words exchanged that no prompt has", Check.CHECKPOINT, partial(records.exchange_words, golden=False)),
    _beside("another constant in a layout's file", Check.APP_FILES, records.app_file),
    _beside("factors of two layers exchanged in a style", Check.FIGURES, styles.exchange_factors),
    _beside("a stale style", Check.FIGURES, styles.stale_style),
    _beside("embeddings of two prompts exchanged", Check.PROMPTS, embeddings.exchange_rows),
    _beside("a value of an embedding changed", Check.PROMPTS, embeddings.change_value),
    _with_checkpoint("embeddings taken from the artifact", "file", Check.PROMPTS, embeddings.taken_from_artifact),
    _with_checkpoint("a stored prompt struck", "file", Check.PROMPTS, embeddings.remove_prompt),
    _with_checkpoint("a prompt stored that was not asked for", "file", Check.PROMPTS, embeddings.add_prompt),
    _with_checkpoint("a stored prompt struck everywhere", "file", Check.PIN, embeddings.remove_everywhere),
    _with_checkpoint("a token added to the tokenizer", "tokenizer", Check.CHECKPOINT, records.add_token),
    _with_checkpoint("a merge of the tokenizer struck", "tokenizer", Check.CHECKPOINT, records.remove_merge),
    _with_checkpoint("a file that the checkpoint does not give", "file", Check.CHECKPOINT, records.list_stranger),
    _with_checkpoint("golden cases in another order", "index", Check.CASES, records.index(records.reverse_cases)),
    _with_checkpoint(
        "golden cases under each other's name", "index", Check.CASES, records.index(records.exchange_case_names)
    ),
    _with_checkpoint(
        "a rewrite in the index",
        "index",
        Check.REFERENCE,
        records.index(records.claim_rewrite),
    ),
    _with_checkpoint(
        "another file of the checkpoint", "manifest", Check.ORIGIN, records.manifest(records.other_checkpoint_file)
    ),
    _with_checkpoint("a golden file that no index names", "golden", Check.CASES, records.other_case),
    _index("truncated index", Check.GOLDEN, lambda sandbox: halve(sandbox.folder / GOLDEN_FOLDER / INDEX)),
    _index("a case struck from the index", Check.BELONGING, records.index(lambda index: index["cases"].pop())),
    _index("a case renamed to lead outside", Check.GOLDEN, records.index(lambda x: x["cases"][0].update(file="../x"))),
    _index("another checkpoint in the index", Check.BELONGING, records.index(_OTHER_CHECKPOINT), Check.BELONGING),
    _index("other one-step constants", Check.BELONGING, records.index(records.negate_step), Check.BELONGING),
    _index(
        "other one-step constants, also in the manifest",
        Check.BELONGING,
        records.index_and_manifest(records.negate_step),
        Check.PICTURE,
    ),
    _index(
        "another checkpoint in index and manifest",
        Check.BELONGING,
        records.index_and_manifest(_OTHER_CHECKPOINT),
        Check.ORIGIN,
    ),
    _with_checkpoint("another seed", "index", Check.REFERENCE, records.index(lambda x: x["cases"][0].update(seed=77))),
    _with_checkpoint(
        "guidance that leads away from zeros", "manifest", Check.CHECKPOINT, records.manifest(records.toggle_zeros)
    ),
    _with_checkpoint("a LoRA that is not there", "manifest", Check.CHECKPOINT, records.manifest(records.claim_lora)),
    _with_checkpoint("a schedule of other noise", "manifest", Check.CHECKPOINT, records.manifest(records.other_noise)),
    _manifest("truncated manifest", Check.MANIFEST, lambda sandbox: halve(sandbox.folder / MANIFEST)),
    _manifest("another artifact hash", Check.BYTES, records.entry(records.other_hash("sha256"))),
    _manifest("another golden hash", Check.BELONGING, records.manifest(records.other_hash("golden_sha256"))),
    _manifest("another checkpoint", Check.BELONGING, records.manifest(_OTHER_CHECKPOINT)),
    _manifest("a component struck", Check.MANIFEST, records.manifest(lambda x: x["artifacts"].pop())),
    _manifest("a threshold struck", Check.MANIFEST, records.manifest(lambda x: x["recipe"]["tolerances"].popitem())),
    _manifest("a threshold of -Infinity", Check.MANIFEST, records.manifest(records.drop_threshold)),
    _manifest("another target", Check.MANIFEST, records.manifest(lambda x: x.update(target="another"))),
    _manifest("a file outside the folder", Check.MANIFEST, records.entry(lambda x: x.update(file="../x"))),
    _manifest("swapped inputs", Check.SURFACE, records.entry(records.exchange_shapes)),
    _manifest("another output name", Check.SURFACE, records.entry(lambda x: x["outputs"][0].update(name="x"))),
    _manifest("broadcastable output shape", Check.SURFACE, records.entry(records.shrink_output)),
    _manifest("wrong output dtype", Check.SURFACE, records.entry(lambda x: x["outputs"][0].update(dtype="float16"))),
    _manifest("other stored bytes", Check.CLAIMS, records.entry(lambda x: x["stored"].update(int4=1))),
    _manifest("other precision", Check.CLAIMS, records.entry(records.other_weights)),
    _manifest('"int8" that is float inside', Check.STORED, records.claim_int8),
    _manifest("a lowered threshold", Check.PIN, records.manifest(lambda x: x["recipe"].update(picture_psnr_db=1.0))),
    _manifest("a component struck everywhere", Check.PIN, records.manifest(records.remove_component)),
    _with_checkpoint("a golden case struck everywhere", "golden", Check.PIN, records.remove_prompt),
)
