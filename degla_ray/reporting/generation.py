"""Results and cost of a run that generates negatives: console, report.json, one HTML page and an MLflow run.

Everything is read from the finished folder, so the report can be written again. Only the durations come from
the runs themselves (`runs/*.json`, one for each run of a language model that was not killed). Rules have no
answers, and so no cost.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from degla_ray import tracking
from degla_ray.config import NegativesConfig
from degla_ray.encoding.features import image_key
from degla_ray.encoding.images import ParquetImages, source_spec
from degla_ray.identity import canonical
from degla_ray.negatives.blind import FILE as BLIND_FILE
from degla_ray.negatives.blind import blind_metrics
from degla_ray.negatives.llm.ledger import State
from degla_ray.negatives.selection import ORDER
from degla_ray.negatives.text_only import text_only_accuracy
from degla_ray.number_formats import MISSING, percent
from degla_ray.reporting.generation_page import Sample, blind_warnings, generation_page
from degla_ray.reporting.thumbnails import thumbnails
from degla_ray.schema import CAPTIONS, NEGATIVES, Kind
from degla_ray.stage import StageFolder
from degla_ray.storage import Storage
from degla_ray.tracking_store import or_told

SAMPLES = 24
"""Random negatives of each kind shown on the page, with their images."""
PREPARED = "prepared"  # name of the captions' folder as a source of images
STATES = tuple(state.value for state in State)


@dataclass(frozen=True, kw_only=True)
class KindReport:
    """Results of one kind of negatives. Captions are counted as samples, answers as texts from the engine.

    Attributes:
        captions: captions by state; they add up to all captions.
        negatives: rows written.
        answers: the engine's answers by state.
        reasons: rows of rejects by reason.
        prompt_tokens, completion_tokens, cached_tokens: totals over all answers.
        words: number of negatives by their length in words.
        text_only_accuracy: how well a classifier tells negatives from captions by their text alone; None for
            too few pairs.
    """

    captions: dict[str, int]
    negatives: int
    answers: dict[str, int]
    reasons: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    words: dict[int, int]
    text_only_accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Results of a whole folder.

    Attributes:
        engine, model: engine and model that wrote the negatives.
        captions: number of samples.
        seconds: total duration of the runs that were not killed.
        timed_answers, timed_accepted: answers, and accepted ones, of those runs.
        gpu_hours: GPU hours in those seconds, or engine hours if the engines had no GPU.
        cost: `gpu_hours` at `generation.price_per_gpu_hour`.
        caption_words: number of captions by their length in words.
    """

    engine: str
    model: str
    captions: int
    seconds: float
    timed_answers: int
    timed_accepted: int
    gpu_hours: float
    cost: float
    caption_words: dict[int, int]
    kinds: dict[str, KindReport]

    def total(self, name: str) -> int:
        """Return the sum over kinds of `negatives` or of one of the token counts."""
        return sum(getattr(kind, name) for kind in self.kinds.values())

    @property
    def answers(self) -> int:
        """Number of the engine's answers in any state."""
        return sum(
            n for kind in self.kinds.values() for s, n in kind.answers.items() if s != "not_applicable"
        )

    def metrics(self) -> dict[str, float]:
        """Return the numbers as flat name -> value, as MLflow compares them; without answers (rules), those
        of captions and negatives only."""
        tokens = self.total("prompt_tokens") + self.total("completion_tokens")
        accepted = max(1, self.total("negatives"))
        seconds = max(self.seconds, 1e-9)
        flat = {
            "captions": self.captions,
            "negatives": self.total("negatives"),
            "answers": self.answers,
            "accepted_fraction": self.total("negatives") / max(1, self.answers),
            "captions_per_second": self.captions * self.timed_answers / max(1, self.answers) / seconds,
            "answers_per_second": self.timed_answers / seconds,
            "accepted_per_second": self.timed_accepted / seconds,
            "prompt_tokens": self.total("prompt_tokens"),
            "completion_tokens": self.total("completion_tokens"),
            "tokens_per_accepted": tokens / accepted,
            "prefix_cache_hit_rate": self.total("cached_tokens") / max(1, self.total("prompt_tokens")),
            "gpu_hours": self.gpu_hours,
            "cost": self.cost,
        }
        if not self.answers:
            flat = {name: flat[name] for name in ("captions", "negatives")}
        for kind, report in self.kinds.items():
            flat |= {f"{kind}/{state}": n for state, n in report.captions.items()}
            if report.text_only_accuracy is not None:
                flat[f"{kind}/text_only_accuracy"] = report.text_only_accuracy
        return {name: float(value) for name, value in flat.items()}


def build_report(
    config: NegativesConfig, folder: StageFolder, model: str
) -> tuple[Report, dict[str, list[tuple[str, str]]]]:
    """Return the report of a finished folder, and all (caption, negative) pairs of each kind."""
    storage, counts = folder.storage, Counter(folder.counts())
    captions = Storage(config.prepared).read_dataset("captions", CAPTIONS, ["sample_id", "caption"])
    pairs = pairs_by_kind(captions, storage.read_dataset("negatives", NEGATIVES))
    runs = [storage.read_json("runs", name) for name in storage.names("runs")]
    gpu_hours = sum(run["gpu_hours"] for run in runs)
    report = Report(
        engine=config.engine,
        model=model,
        captions=counts["captions"],
        seconds=sum(run["seconds"] for run in runs),
        timed_answers=sum(run["answers"] for run in runs),
        timed_accepted=sum(run["accepted"] for run in runs),
        gpu_hours=gpu_hours,
        cost=gpu_hours * config.generation.price_per_gpu_hour,
        caption_words=_word_counts(captions["caption"].to_pylist()),
        kinds={
            kind.value: _kind_report(kind, counts, pairs.get(kind, []), config.seed)
            for kind in ORDER
            if not config.kinds or kind in config.kinds
        },
    )
    return report, pairs


def publish(config: NegativesConfig, folder: StageFolder, model: str) -> None:
    """Report on a finished folder: print the table, write the files to the folder, and log to MLflow.

    Args:
        config: settings of the job.
        folder: the finished folder.
        model: name of the language model; empty for rules, whose table the job prints.
    """
    report, pairs = build_report(config, folder, model)
    content = asdict(report) | {"totals": report.metrics()}
    if report.answers:
        Console().print(console_table(report))
    for warning in blind_warnings(content):
        print(f"warning: {warning}")
    page = generation_page(content, samples_of(config, pairs))
    folder.storage.write_json(content, "report.json")
    folder.storage.write_bytes(page.encode(), "report.html")
    uri = folder.storage.uri
    run = tracking.running(
        config.tracking,
        f"negatives-{report.engine}-{report.model}".rstrip("-"),
        folder.fingerprint,
        uri,
        params=canonical(config),
        tags={tracking.STAGE_TAG: "negatives"},
    )
    with or_told(f"the report of {uri} is"), run as run_id:
        tracking.log_dataset(config.tracking, run_id, "negatives", folder.fingerprint, uri, "output")
        blind = blind_metrics(folder.storage)
        tracking.log_metrics(config.tracking, run_id, report.metrics() | blind)
        files = ["report.html", "report.json", *([BLIND_FILE] if blind else [])]
        tracking.log_files(config.tracking, run_id, folder.storage, files)
    print(f"report: {folder.storage.uri}/report.html")


def console_table(report: Report) -> Table:
    """Return a table with one row per kind, and the totals as its caption."""
    totals = report.metrics()
    table = Table(
        title=(
            f"{report.engine} {report.model}: {totals['negatives']:,.0f} negatives "
            f"of {report.captions:,} captions"
        ),
        caption=(
            f"{report.answers:,} answers, {report.timed_answers:,} of them in {report.seconds:,.0f} s: "
            f"{totals['answers_per_second']:,.1f}/s, accepted {totals['accepted_per_second']:,.1f}/s; "
            f"{totals['tokens_per_accepted']:,.0f} tokens per accepted negative; "
            f"prefix cache {percent(totals['prefix_cache_hit_rate'], digits=0)}%; "
            f"{report.gpu_hours:.2f} engine hours, cost {report.cost:.2f}"
        ),
    )
    table.add_column("kind", no_wrap=True)
    for heading in ("rows", "with", "without", "failed", "n/a", "answers", "passed", "text-only"):
        table.add_column(heading, justify="right")
    for kind, row in report.kinds.items():
        answers = sum(n for state, n in row.answers.items() if state != "not_applicable")
        table.add_row(
            kind,
            f"{row.negatives:,}",
            *(f"{row.captions[state]:,}" for state in STATES),
            f"{answers:,}",
            f"{percent(row.answers['ok'] / max(1, answers))} %",
            MISSING if row.text_only_accuracy is None else f"{percent(row.text_only_accuracy, digits=0)} %",
        )
    return table


def samples_of(
    config: NegativesConfig, pairs: Mapping[str, list[tuple[str, str]]]
) -> dict[str, list[Sample]]:
    """Return SAMPLES random negatives of each kind, with an image of the caption where it can be read."""
    rng = random.Random(0)
    drawn = {kind: rng.sample(found, min(SAMPLES, len(found))) for kind, found in pairs.items()}
    captions = Storage(config.prepared).read_dataset("captions", CAPTIONS, ["image_id", "caption"])
    columns = (captions[name].to_pylist() for name in ("caption", "image_id"))
    key_of = {text: image_key(PREPARED, image_id) for text, image_id in zip(*columns, strict=True)}
    wanted = {key_of[caption] for rows in drawn.values() for caption, _ in rows}
    source = source_spec(ParquetImages(Storage(config.prepared).uri))
    images = thumbnails(wanted, [{PREPARED: source}])
    return {
        kind: [Sample(caption=text, negative=other, image=images.get(key_of[text])) for text, other in rows]
        for kind, rows in drawn.items()
    }


def pairs_by_kind(captions: pa.Table, negatives: pa.Table) -> dict[str, list[tuple[str, str]]]:
    """Return the (caption, negative) pairs of each kind; identical pairs are returned once."""
    columns = (captions[name].to_pylist() for name in ("sample_id", "caption"))
    text = dict(zip(*columns, strict=True))
    pairs: dict[str, dict[tuple[str, str], None]] = {}
    for row in negatives.select(["sample_id", "kind", "negative"]).to_pylist():
        pairs.setdefault(row["kind"], {})[(text[row["sample_id"]], row["negative"])] = None
    return {kind: list(found) for kind, found in pairs.items()}


def _kind_report(kind: Kind, counts: Counter[str], pairs: list[tuple[str, str]], seed: int) -> KindReport:
    prefix = f"rejects.{kind}."
    return KindReport(
        captions={state: counts[f"captions.{kind}.{state}"] for state in STATES},
        negatives=counts[f"rows.{kind}"],
        answers={state: counts[f"attempts.{kind}.{state}"] for state in STATES},
        reasons={name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)},
        prompt_tokens=counts[f"prompt_tokens.{kind}"],
        completion_tokens=counts[f"completion_tokens.{kind}"],
        cached_tokens=counts[f"cached_tokens.{kind}"],
        words=_word_counts([negative for _, negative in pairs]),
        text_only_accuracy=text_only_accuracy(pairs, seed),
    )


def _word_counts(texts: list[str]) -> dict[int, int]:
    return dict(sorted(Counter(len(text.split()) for text in texts).items()))
