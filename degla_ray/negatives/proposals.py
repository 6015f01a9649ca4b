"""What passes between an engine and the pipeline: requests, proposals, and the engine's protocol.

An engine only proposes; `select` checks, keeps the first that pass and turns the others into rejects, so
every engine is held to the same checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from degla_ray.language.tagging import Sentence
from degla_ray.negatives.checks import Candidate, Language, first_failure, normal_form
from degla_ray.schema import Kind, RejectReason

ORDER = (Kind.SWAP_NOUNS, Kind.SWAP_ADJECTIVES, Kind.REPLACE_NOUNS, Kind.REPLACE_ADJECTIVES, Kind.RESHUFFLE)
"""Kinds in the order in which a caption's negatives are found: where two kinds give the same text
(phrases without adjectives), the kind with fewer possibilities gets it."""

Veto = Callable[[str, Kind], RejectReason | None]
"""A reason to reject a text that passed the checks, from what is known of the image; or none."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One caption to find negatives for.

    Attributes:
        caption: the caption.
        siblings: other captions of the same image: what they mention is there, so it is no replacement.
        limit: negatives wanted of each kind, at most.
        seed: decides the engine's choices.
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
        scrambled: its word order is free, so that no grammar can be read off it.
    """

    sentence: Sentence
    scrambled: bool = False


class Engine(Protocol):
    """A source of candidates.

    Attributes:
        name, model: columns of the rows it makes.
        prompt_sha: hash of the text (prompts or word lists) that it works from.
        language: the words that its candidates are checked with.
    """

    name: str
    model: str
    prompt_sha: str
    language: Language

    def read(self, caption: str) -> Sentence:
        """The caption as the checks want it."""
        ...

    def propose(self, requests: Sequence[Request], kind: Kind) -> Iterable[Iterable[Proposal]]:
        """Candidates of one kind for each request, best first; may be lazy, and may be empty."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A candidate that failed."""

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
        unread: why the caption was not read at all, if it was not.
    """

    accepted: dict[Kind, list[str]] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
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
        """Draws candidates of `kind` until `limit` of them pass the checks, or there are no more."""
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
                    Reject(kind=kind, text=text, reason=failure[1], detail=f"check {failure[0]}")
                )
                continue
            accepted.append(text)
            self.seen |= {normal_form(text)}


def no_veto(text: str, kind: Kind) -> None:
    """Nothing is known of the image."""


def select(
    engine: Engine, requests: Sequence[Request], kinds: Sequence[Kind], vetoes: Sequence[Veto]
) -> list[Selection]:
    """Negatives of every request, checked.

    Args:
        engine: proposes.
        requests: captions.
        kinds: kinds wanted.
        vetoes: one for each request.
    """
    selections = [Selection() for _ in requests]
    captions = [engine.read(request.caption) for request in requests]
    for kind in (k for k in ORDER if k in kinds):
        for i, proposals in enumerate(engine.propose(requests, kind)):
            selections[i].take(captions[i], kind, proposals, requests[i].limit, engine.language, vetoes[i])
    return selections
