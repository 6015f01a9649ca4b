"""Select a caption's negatives from the candidates of a caption editor, and record the others as rejects.

A `CaptionEditor` (today the rule engine) only proposes edits. `select` checks each candidate and keeps the
first that pass, so every editor is held to the same checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from degla_ray.language.tagging import Sentence
from degla_ray.negatives.checks import Candidate, Language, first_failure, normal_form
from degla_ray.schema import Kind, RejectReason

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
    """

    caption: str
    siblings: tuple[str, ...] = ()
    limit: int
    seed: str


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A candidate.

    Attributes:
        sentence: the negative caption.
        scrambled: whether its word order is free, so that no grammar can be read from it.
    """

    sentence: Sentence
    scrambled: bool = False


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
        rejects: candidates that failed.
        seen: normal forms of the accepted texts of all kinds.
        unread: reason why the caption was not read; None if it was.
    """

    accepted: dict[Kind, list[str]] = field(default_factory=dict)
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
            self.seen |= {normal_form(text)}


def no_veto(text: str, kind: Kind) -> None:
    """Accept every text, because nothing is known about the image."""


def select(
    editor: CaptionEditor, requests: Sequence[EditRequest], kinds: Sequence[Kind], vetoes: Sequence[Veto]
) -> list[Selection]:
    """Return the checked negatives of each request.

    Args:
        editor: source of candidates.
        requests: captions.
        kinds: requested kinds.
        vetoes: one per request.
    """
    selections = [Selection() for _ in requests]
    captions = [editor.read(request.caption) for request in requests]
    for kind in (k for k in ORDER if k in kinds):
        for i, proposals in enumerate(editor.propose(requests, kind)):
            selections[i].take(captions[i], kind, proposals, requests[i].limit, editor.language, vetoes[i])
    return selections
