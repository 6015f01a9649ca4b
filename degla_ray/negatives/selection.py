"""Select a caption's negatives from the candidates of a caption editor, and record the others as rejects.

A `CaptionEditor` (today the rule engine) only proposes edits. `select` checks each candidate and keeps the
first that pass, so every editor is held to the same checks. With n-gram models, the candidates that are about
as likely as their caption come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from degla_ray.language.tagging import Sentence
from degla_ray.negatives.checks import Candidate, Language, first_failure, normal_form
from degla_ray.negatives.plausibility import Chooser, plausibility
from degla_ray.schema import Kind, RejectReason

MAX_CANDIDATES = 64
"""Candidates of a (caption, kind) that are scored."""
ORDER = (Kind.SWAP_NOUNS, Kind.SWAP_ADJECTIVES, Kind.REPLACE_NOUNS, Kind.REPLACE_ADJECTIVES, Kind.RESHUFFLE)
"""Order in which a caption's kinds are processed. If two kinds can give the same text (phrases without
adjectives), the kind with fewer possibilities gets it."""

Veto = Callable[[str, Kind], RejectReason | None]
"""Returns a reason to reject a text that passed the checks, based on knowledge of the image; or None."""


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """Request for the negatives of one caption.

    Attributes:
        caption: the caption.
        siblings: other captions of the image; what they mention is present, so it cannot be a replacement.
        limit: maximum number of negatives per kind.
        seed: determines the editor's choices.
        fold: fold of the caption's image.
    """

    caption: str
    siblings: tuple[str, ...] = ()
    limit: int
    seed: str
    fold: int = 0


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A candidate.

    Attributes:
        sentence: the negative caption.
        scrambled: whether its word order is free, so that no grammar can be read from it.
        plausibility: log-probability a word minus that of the caption; None if it was not scored.
    """

    sentence: Sentence
    scrambled: bool = False
    plausibility: float | None = None


class CaptionEditor(Protocol):
    """A source of candidates that edits tagged captions.

    Attributes:
        name, model: column values of its rows.
        prompt_sha: hash of the word lists that it works from.
        language: the words that its candidates are checked with.
    """

    name: str
    model: str
    prompt_sha: str
    language: Language

    @staticmethod
    def identity() -> dict[str, str]:
        """Return what determines the editor's output apart from the job's settings.

        Every rerun calls this, so it must not load a model.
        """
        ...

    def read(self, caption: str) -> Sentence:
        """Return the tagged caption, as the checks expect it."""
        ...

    def propose(self, requests: Sequence[EditRequest], kind: Kind) -> Iterable[Iterable[Proposal]]:
        """Return candidates of one kind for each request, best first; may be lazy and may be empty."""
        ...


@dataclass(frozen=True, kw_only=True)
class RejectedProposal:
    """A candidate that failed a check."""

    kind: Kind
    text: str
    reason: RejectReason
    detail: str


@dataclass(kw_only=True)
class Selection:
    """The negatives of one caption so far.

    Attributes:
        accepted: texts by kind.
        plausibility: scores of accepted texts.
        rejects: candidates that failed.
        seen: normal forms of the accepted texts of all kinds.
        unread: reason why the caption was not read; None if it was.
    """

    accepted: dict[Kind, list[str]] = field(default_factory=dict)
    plausibility: dict[str, float] = field(default_factory=dict)
    rejects: list[RejectedProposal] = field(default_factory=list)
    seen: frozenset[str] = frozenset()
    unread: RejectReason | None = None

    def take(
        self,
        caption: Sentence,
        kind: Kind,
        proposals: Iterable[Proposal],
        limit: int,
        language: Language,
        veto: Veto,
    ) -> None:
        """Take candidates of `kind` until `limit` of them pass the checks or none are left."""
        accepted = self.accepted.setdefault(kind, [])
        for proposal in proposals:
            if len(accepted) >= limit:
                return
            candidate = Candidate(
                caption=caption, negative=proposal.sentence, accepted=self.seen, scrambled=proposal.scrambled
            )
            text = proposal.sentence.text
            failure = first_failure(candidate, language)
            if failure is None:
                vetoed = veto(text, kind)
                failure = ("veto", vetoed) if vetoed is not None else None
            if failure is not None:
                self.rejects.append(
                    RejectedProposal(kind=kind, text=text, reason=failure[1], detail=f"check {failure[0]}")
                )
                continue
            accepted.append(text)
            if proposal.plausibility is not None:
                self.plausibility[text] = proposal.plausibility
            self.seen |= {normal_form(text)}


def no_veto(text: str, kind: Kind) -> None:
    """Accept every text, because nothing is known about the image."""


def select(
    editor: CaptionEditor,
    requests: Sequence[EditRequest],
    kinds: Sequence[Kind],
    vetoes: Sequence[Veto],
    chooser: Chooser | None = None,
) -> list[Selection]:
    """Return the checked negatives of each request.

    Args:
        editor: source of candidates.
        requests: captions.
        kinds: requested kinds.
        vetoes: one per request.
        chooser: orders the candidates of each request; None keeps the editor's order.
    """
    selections = [Selection() for _ in requests]
    captions = [editor.read(request.caption) for request in requests]
    for kind in (k for k in ORDER if k in kinds):
        proposed = editor.propose(requests, kind)
        for i, proposals in enumerate(proposed if chooser is None else _scored(proposed, requests, chooser)):
            text, selection = requests[i].caption, selections[i]
            if chooser is not None:
                candidates = {p.sentence.text: p for p in proposals}
                scores = {negative: p.plausibility or 0.0 for negative, p in candidates.items()}
                proposals = [candidates[negative] for negative in chooser.order(kind, text, scores)]
            selection.take(captions[i], kind, proposals, requests[i].limit, editor.language, vetoes[i])
            if chooser is not None:
                for negative in selection.accepted[kind]:
                    chooser.add(kind, text, negative, selection.plausibility[negative])
    return selections


def _scored(
    proposed: Iterable[Iterable[Proposal]], requests: Sequence[EditRequest], chooser: Chooser
) -> list[list[Proposal]]:
    """Return at most MAX_CANDIDATES candidates of each request, with their scores."""
    found = [list(islice(proposals, MAX_CANDIDATES)) for proposals in proposed]
    for fold in {request.fold for request in requests}:
        mine = [i for i, request in enumerate(requests) if request.fold == fold]
        captions = [requests[i].caption for i in mine for _ in found[i]]
        negatives = [proposal.sentence.text for i in mine for proposal in found[i]]
        scores = iter(plausibility(chooser.models.selector(fold), captions, negatives).tolist())
        for i in mine:
            found[i] = [replace(proposal, plausibility=next(scores)) for proposal in found[i]]
    return found
