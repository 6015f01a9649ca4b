"""Write one shard of negatives: captions in, two Parquet parts and a receipt out. Does not import Ray.

Each (caption, kind) ends in one state: `ok` (at least one row), `rejected` (candidates, but none passed) or
`not_applicable` (the caption cannot have the kind), so the three counts add up to the shard's captions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from degla_ray.language.identify import is_english, language_of
from degla_ray.negatives.captions import ImageCaption
from degla_ray.negatives.plausibility import CaptionModels, Chooser
from degla_ray.negatives.selection import ORDER, CaptionEditor, EditRequest, Selection, Veto, no_veto, select
from degla_ray.schema import NEGATIVES, REJECTS, Kind, RejectReason
from degla_ray.stage import StageFolder

STAGE = "negatives"
BATCH = 256
"""Requests passed to the editor at a time."""

_WORDS = re.compile(r"[^\W\d_]+", re.UNICODE)


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Settings shared by all shards.

    Attributes:
        folder: output folder.
        kinds: requested kinds.
        per_kind: maximum number of negatives per caption and kind.
        seed: seed of the editor's choices.
        english: whether most captions of the source are English.
    """

    folder: StageFolder
    kinds: tuple[Kind, ...]
    per_kind: int
    seed: int
    english: bool = True


def vocabulary(texts: Iterable[str]) -> frozenset[str]:
    """Return the words that occur in a dataset's captions, in lower case."""
    words: set[str] = set()
    for text in texts:
        words.update(_WORDS.findall(text.lower()))
    return frozenset(words)


def write_shard(
    task: ShardTask,
    editor: CaptionEditor,
    shard: int,
    captions: Sequence[ImageCaption],
    models: CaptionModels | None = None,
) -> dict[str, int]:
    """Generate, check and write one shard; return the counts of its receipt.

    Args:
        task: the job's settings.
        editor: source of candidates.
        shard: number of the shard.
        captions: its captions.
        models: n-gram models by which candidates are chosen; None takes the editor's first.
    """
    counts: Counter[str] = Counter(captions=len(captions))
    groups: dict[tuple[str, tuple[str, ...], str | None], list[ImageCaption]] = {}
    for caption in captions:  # captions that are equal in every respect are generated once
        groups.setdefault((caption.text, caption.siblings, caption.graph), []).append(caption)
    selections: dict[str, Selection] = {}
    chooser = Chooser(models) if models is not None else None
    for start in range(0, len(groups), BATCH):
        batch = list(groups.values())[start : start + BATCH]
        for group, selection in zip(
            batch, _generate(task, editor, [g[0] for g in batch], counts, chooser), strict=True
        ):
            selections.update((caption.sample_id, selection) for caption in group)
    rows, rejects = _tables(editor, captions, selections)
    _count(task, selections.values(), counts)
    task.folder.write_part("negatives", shard, rows)
    task.folder.write_part("rejects", shard, rejects)
    task.folder.write_receipt(shard, counts)
    return dict(counts)


def _generate(
    task: ShardTask,
    editor: CaptionEditor,
    captions: Sequence[ImageCaption],
    counts: Counter[str],
    chooser: Chooser | None,
) -> list[Selection]:
    english = [is_english(c.text, task.english) for c in captions]
    requests = [
        EditRequest(
            caption=c.text,
            siblings=c.siblings,
            limit=task.per_kind,
            seed=f"{task.seed} {c.sample_id}",
            fold=c.fold,
        )
        for c, readable in zip(captions, english, strict=True)
        if readable
    ]
    vetoes = [
        no_veto if c.graph is None else scene_veto(c.graph, counts)
        for c, readable in zip(captions, english, strict=True)
        if readable
    ]
    selected = iter(select(editor, requests, task.kinds, vetoes, chooser))
    return [next(selected) if readable else _other_language(task.kinds) for readable in english]


def _other_language(kinds: Sequence[Kind]) -> Selection:
    """Return an empty selection: the rules do not read the caption's language."""
    return Selection(accepted={kind: [] for kind in kinds}, unread=RejectReason.WRONG_LANGUAGE)


def scene_veto(graph: str, counts: Counter[str]) -> Veto:
    """Return a veto of texts that are true of a scene; it counts the texts that passed the text checks."""
    from degla_ray.sources.scenes.truth import is_true
    from degla_ray.sources.scenes.world import scene_from_json

    scene = scene_from_json(graph)

    def veto(text: str, kind: Kind) -> RejectReason | None:
        truth = is_true(text, scene)
        counts[f"truth.{kind}.{'not_parseable' if truth is None else str(truth).lower()}"] += 1
        return RejectReason.TRUE_OF_IMAGE if truth else None

    return veto


def _tables(
    editor: CaptionEditor, captions: Sequence[ImageCaption], selections: Mapping[str, Selection]
) -> tuple[pa.Table, pa.Table]:
    rows, rejects = [], []
    for caption in captions:
        selection = selections[caption.sample_id]
        for kind in (k for k in ORDER if k in selection.accepted):
            for text in selection.accepted[kind]:
                written_by = (editor.name, editor.model, editor.prompt_sha, 0)
                score = selection.plausibility.get(text)
                rows.append((caption.sample_id, kind.value, text, *written_by, score))
        if selection.unread is not None:
            code, probability = language_of(caption.text)
            detail = f"{code}, probability {probability:.2f}"
            rejects.append(
                (STAGE, caption.sample_id, "caption", caption.text, selection.unread.value, detail)
            )
        for r in selection.rejects:
            rejects.append((STAGE, caption.sample_id, r.kind.value, r.text, r.reason.value, r.detail))
    return to_table(rows, NEGATIVES), to_table(rejects, REJECTS)


def to_table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _count(task: ShardTask, selections: Iterable[Selection], counts: Counter[str]) -> None:
    for selection in selections:
        failed = {reject.kind for reject in selection.rejects}
        for kind in task.kinds:
            accepted = selection.accepted[kind]
            state = "ok" if accepted else "rejected" if kind in failed else "not_applicable"
            counts[f"captions.{kind}.{state}"] += 1
            counts[f"rows.{kind}"] += len(accepted)
        if selection.unread is not None:
            counts[f"rejects.caption.{selection.unread}"] += 1
        for reject in selection.rejects:
            counts[f"rejects.{reject.kind}.{reject.reason}"] += 1
