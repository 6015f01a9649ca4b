"""A sweep on the console: a line at each trial's beginning and end, and the table at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from rich.console import Console
from rich.table import Table

from degla_ray.number_formats import percent
from degla_ray.training import ray_train
from degla_ray.tuning.ledger import Ledger, Trial
from degla_ray.tuning.rule import Rule, Verdict, ranking

console = Console()


def say(line: str) -> None:
    """Print a line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


class Progress(Callback):
    """Keeps the ledger of a call's trials, and prints how the sweep stands.

    Args:
        ledger: the sweep's trials.
        rule: by which one of them is the best so far.
        left: trials that this call runs.
        at_once: trials that run at the same time.
        sweep: name of the sweep.
    """

    def __init__(self, ledger: Ledger, rule: Rule, left: int, at_once: int, sweep: str) -> None:
        self._ledger, self._rule, self._left, self._at_once = ledger, rule, left, at_once
        self._sweep = sweep
        self._before = {number: trial.seconds for number, trial in ledger.trials.items()}
        self._total = len(ledger.over) + left
        self._numbers: dict[str, int] = {}
        self._folders: dict[int, str] = {}
        self._running: set[int] = set()
        self._ended_s: list[float] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Progress:
        """Return the object itself: Tune copies its settings, but there is one sweep."""
        return self

    def name(self, trial: TuneTrial) -> str:
        """Return the name of Tune's trial, which gets its number here."""
        if trial.trial_id not in self._numbers:
            self._numbers[trial.trial_id] = self._ledger.begin(trial.config)
        return f"{self._sweep}-trial-{self._numbers[trial.trial_id]}"

    def seconds(self) -> float:
        """Return the seconds of all trials of the sweep."""
        return sum(trial.seconds for trial in self._ledger.trials.values())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: TuneTrial, **_: Any) -> None:
        number = self._numbers[trial.trial_id]
        self._running.add(number)
        begun = dataclasses.replace(self._ledger.trials[number], state="running", error="")
        self._ledger.write(begun)
        say(f"trial {number} of {self._total} begins: {shown(begun.settings)}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: TuneTrial, result: dict[str, Any], **_: Any
    ) -> None:
        number = self._numbers[trial.trial_id]
        known = self._ledger.trials[number]
        self._folders[number] = result["folder"]
        seconds = self._before.get(number, 0.0) + result["time_total_s"]
        now = dataclasses.replace(
            known,
            scores=result["scores"],
            curve=result["curve"],
            runs=result["runs"],
            error=result["error"],
            seconds=seconds,
        )
        if now.curve != known.curve or now.runs != known.runs:
            self._ledger.write(now)
        else:
            self._ledger.trials[number] = now

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: TuneTrial, **_: Any) -> None:
        last = trial.last_result or {}
        if last.get("done"):  # else a budget is spent, and a later call goes on with it
            # Only a result before the trial's own end has a step, by which ASHA stopped it.
            state: Literal["finished", "stopped"] = "stopped" if "step" in last else "finished"
            known = self._ledger.trials[self._numbers[trial.trial_id]]
            if state == "stopped":
                ray_train.end(self._folders[known.number])
            self._end(dataclasses.replace(known, state=state))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: TuneTrial, **_: Any) -> None:
        known = self._ledger.trials[self._numbers[trial.trial_id]]
        self._end(dataclasses.replace(known, state="failed", error=known.error or "its process ended"))

    def interrupt(self) -> None:
        """Save and end the running trials, which a later call goes on with.

        Tune itself gives a trial five seconds and then kills it; its workers would keep their CPUs.
        """
        for number in sorted(self._running):
            saved = ray_train.end(self._folders.get(number, ""))
            say(
                f"trial {number} ends; "
                + ("nothing new is saved" if saved is None else f"saved step {saved}")
            )

    def _end(self, trial: Trial) -> None:
        self._ledger.write(trial)
        self._running.discard(trial.number)
        self._left -= 1
        self._ended_s.append(trial.seconds)
        say(f"{trial.name} of {self._total} {outcome(trial, self._rule)}; {self._standing()}")

    def _standing(self) -> str:
        """Return how many trials run, which is the best, and how long the rest will take."""
        parts = [f"{len(self._running)} running"]
        done = [t for t in ranking(self._rule, list(self._ledger.trials.values())) if t.state == "finished"]
        if done:
            best = (
                "best so far"
                if self._rule.keeps(done[0].scores)
                else f"none keeps {self._rule.keep}, closest"
            )
            parts.append(f"{best} {done[0].name} ({scores_of(done[0].scores, self._rule)})")
        if self._left:
            mean_s = sum(self._ended_s) / len(self._ended_s)
            parts.append(f"about {duration(mean_s * self._left / self._at_once)} left")
        return ", ".join(parts)


def outcome(trial: Trial, rule: Rule) -> str:
    """Return what came of a trial, such as `finished, composition 63.4 %, zero_shot 95.0 %`."""
    if trial.state == "failed":
        return f"failed: {trial.error}"
    if trial.state == "running":
        return "is unfinished"
    at = f" at step {trial.step}" if trial.state == "stopped" else ""
    return f"{trial.state}{at}, {scores_of(trial.scores, rule)}"


def scores_of(scores: Mapping[str, float], rule: Rule) -> str:
    """Return the scores that the rule uses."""
    return ", ".join(f"{name} {percent(scores[name])} %" for name in rule.names if name in scores)


def shown(settings: Mapping[str, Any]) -> str:
    """Return a trial's settings on one line, each by the last word of its name."""
    return ", ".join(
        f"{heading} {value_shown(value)}"
        for heading, value in zip(headings(list(settings)), settings.values(), strict=True)
    )


def value_shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def headings(names: Sequence[str]) -> list[str]:
    """Return short headings of dotted settings: the last word, or the whole name if that is not unique."""
    last = [name.rpartition(".")[2] for name in names]
    return [word if last.count(word) == 1 else name for name, word in zip(names, last, strict=True)]


def duration(seconds: float) -> str:
    """Return a duration as `1 h 10 min`, `12 min` or `40 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def show(title: str, rule: Rule, found: Verdict) -> None:
    """Print the trials, sorted by the rule, and what is said of the pick."""
    names = sorted(found.trials[0].settings)
    table = Table(title=title, title_justify="left")
    # Narrow columns: a name may break at each underscore.
    broken = [heading.replace(".", ".\n").replace("_", "_\n") for heading in headings(names)]
    for column in ("trial", *broken, *rule.names, ""):
        table.add_column(column)
    table.add_row("base", *("" for _ in names), *(f"{percent(rule.base[name])} %" for name in rule.names), "")
    for trial in found.trials:
        values = [value_shown(trial.settings[name]) for name in names]
        scores = [f"{percent(trial.scores[n])} %" if n in trial.scores else "" for n in rule.names]
        table.add_row(str(trial.number), *values, *scores, remark(trial, rule, found))
    console.print(table)
    for line in found.lines:
        say(line)


def remark(trial: Trial, rule: Rule, found: Verdict) -> str:
    """Return what the table says beside a trial's scores."""
    if trial.state != "finished":
        return outcome(trial, rule) if trial.state != "stopped" else f"stopped at step {trial.step}"
    if found.best is not None and trial.number == found.best.number:
        return "best"
    if found.closest is not None and trial.number == found.closest.number:
        return "closest"
    return "" if rule.keeps(trial.scores) else f"breaks {rule.keep}"
