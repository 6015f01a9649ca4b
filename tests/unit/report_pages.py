"""A comparison, a report on negatives and a sweep with all that a page can show, for tests of the pages."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from test_evaluation_published import OFF, choice, evaluation, retrieval, write_images, zero_shot
from test_tuning import BOTH, _many, _rule

from degla_ray.config import CompareConfig
from degla_ray.evaluation.benchmarks.sugarcrepe import AVERAGES, SUBSETS
from degla_ray.evaluation.summary import SUMMARY
from degla_ray.reporting.compare import compare
from degla_ray.reporting.generation import KindReport, Report
from degla_ray.reporting.generation_page import Sample, generation_page
from degla_ray.tuning.page import sweep_page
from degla_ray.tuning.rule import Verdict

LABELS = ("base", "a much longer label of a model, plain", "tuned")
LAST_SETTING = "optimizer.weight_decay"  # of the closed table of equal settings


def comparison_report(folder: Path) -> Path:
    """Write and return the page of three models, two of them trained."""
    write_images(folder / "images", [f"{i}.png" for i in range(40)])
    write_images(folder / "images", [f"{i}" for i in range(25)], format="PNG")
    benchmarks = [choice("sugarcrepe", SUBSETS, AVERAGES, n=40), zero_shot("zeroshot_dtd"), retrieval()]
    folders = []
    for number, (label, skill) in enumerate(zip(LABELS, (0.3, 0.32, 0.9), strict=True)):
        folders.append(evaluation(folder / f"evaluation{number}", label, benchmarks, number, skill))
        if number:
            run = folder / f"run{number}"
            (run / "export_student").mkdir(parents=True)
            trace = [{"step": s, "loss": 4 / s, "igc": 1 / s} for s in range(1, 200)]
            (run / "trace.jsonl").write_text("\n".join(map(json.dumps, trace)))
            settings = {"seed": 0, "global_batch_size": 64, "optimizer": {"lr": number, "weight_decay": 0.1}}
            (run / "config.json").write_text(json.dumps({"config": settings}))
            (run / "result.json").write_text(json.dumps({"steps": 200}))
            (run / "progress.json").write_text(json.dumps({"samples_per_s": 123.4}))
            summary = Path(folders[-1], SUMMARY)
            content = json.loads(summary.read_text())
            content["model"]["folder"] = str(run / "export_student")
            summary.write_text(json.dumps(content))
    return Path(
        compare(CompareConfig(evaluations=folders, output=str(folder / "out"), tracking=OFF)), "report.html"
    )


def generation_report(folder: Path) -> Path:
    """Write and return the page of rules, one kind of which is told blind."""
    states = ("ok", "rejected", "error", "not_applicable")
    kinds = {
        kind: KindReport(
            captions=dict(zip(states, (700, 200, 0, 100), strict=True)),
            negatives=1400,
            answers=dict.fromkeys(states, 0),
            reasons={"same_meaning": 300, "true_of_image": 20},
            prompt_tokens=0,
            completion_tokens=0,
            cached_tokens=0,
            words={8: 400, 9: 600, 12: 400},
            text_only_accuracy=accuracy,
        )
        for kind, accuracy in (("swap_nouns", 0.51), ("replace_nouns", 0.87))
    }
    report = Report(
        engine="rules", model="", captions=1000, seconds=0, timed_answers=0, timed_accepted=0, gpu_hours=0,
        cost=0, caption_words={8: 500, 9: 500}, kinds=kinds,
    )  # fmt: skip
    file = io.BytesIO()
    Image.new("RGB", (240, 160), "teal").save(file, "PNG")
    sample = Sample(
        caption="a dog left of a cat", negative="a cat left of a dog", image=_uri(file.getvalue())
    )
    samples = {kind: [sample] * 3 for kind in kinds}
    page = folder / "negatives.html"
    page.write_text(generation_page(asdict(report) | {"totals": report.metrics()}, samples))
    return page


def sweep_report(folder: Path) -> Path:
    """Write and return the page of a sweep of twelve trials with two objectives."""
    trials = _many()
    found = Verdict(trials=tuple(trials), best=trials[9], closest=None, lines=("trial 10 is best",))
    shares = {name: {"objective.lambda_igc": 0.9, "data.kinds": 0.1} for name in BOTH}
    bounds = {trial.number: (0.4, 0.8) for trial in trials if trial.state == "finished"}
    page = folder / "sweep.html"
    page.write_text(sweep_page("weights", _rule(), found, shares, bounds))
    return page


def _uri(png: bytes) -> str:
    import base64

    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
