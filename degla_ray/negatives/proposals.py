"""The interface between engines and the pipeline: requests, proposals and the protocol `Engine`.

An engine only proposes. `select` checks the candidates, keeps the first that pass and records the others as
rejects, so every engine is held to the same checks.
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
class Request:
    """One caption to find negatives for.

    Attributes:
        caption: the caption.
        siblings: other captions of the image; what they mention is present, so it cannot be a replacement.
        limit: maximum number of negatives per kind.
        seed: determines the engine's choices.
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


class Engine(Protocol):
    """A source of candidates.

    Attributes:
        name, model: column values of its rows.
        prompt_sha: hash of the text (prompts or word lists) that it works from.
        language: the words that its candidates are checked with.
    """

    name: str
    model: str
    prompt_sha: str
    language: Language

    def read(self, caption: str) -> Sentence:
        """Return the caption as the sentence that the checks take."""
        ...

    def propose(self, requests: Sequence[Request], kind: Kind) -> Iterable[Iterable[Proposal]]:
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
        unread: why the caption was not read, if it was not.
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
        """Draw candidates of `kind` until `limit` of them pass the checks or none are left."""
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
    """Accept every text: nothing is known about the image."""


def select(
    engine: Engine, requests: Sequence[Request], kinds: Sequence[Kind], vetoes: Sequence[Veto]
) -> list[Selection]:
    """Return the checked negatives of each request.

    Args:
        engine: the source of candidates.
        requests: the captions.
        kinds: kinds wanted.
        vetoes: one per request.
    """
    selections = [Selection() for _ in requests]
    captions = [engine.read(request.caption) for request in requests]
    for kind in (k for k in ORDER if k in kinds):
        for i, proposals in enumerate(engine.propose(requests, kind)):
            selections[i].take(captions[i], kind, proposals, requests[i].limit, engine.language, vetoes[i])
    return selections
