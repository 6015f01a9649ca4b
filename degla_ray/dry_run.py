"""What a stage would do: work, hours, cost and room, printed by `--dry_run` without writing anything.

A stage's `plan` makes the checks that its run makes, with the same functions, and returns a `Plan`. Hours
need a speed: given as an option of the dry run, or measured on a sample or by an interrupted run. Without one
there are no hours, because speeds differ by a factor of a hundred between machines.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from degla_ray.config import DryRunConfig
from degla_ray.errors import SettingError
from degla_ray.number_formats import MISSING

FLAG = "--dry_run"
FINISHED = "finished"
GB = 1e9

console = Console()


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The speed of one worker, in units of a plan's work per second, and where it is from."""

    per_second: float
    origin: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a stage would do.

    Attributes:
        stage: heading, such as `train degla`.
        output: URI of the folder that it writes to.
        work: what is left to do, for people.
        amount: the same in units; 0 if nothing is left.
        unit: images, captions, answers, samples or items.
        rate: speed of one worker; None if it is unknown.
        option: option of DryRunConfig that gives the speed.
        workers: workers, actors or engines that share the work.
        gpus: GPUs of each of them.
        size: bytes that are written to `output`, at most.
        notes: lines to print below the table.
        captions: captions by split that the stage leaves (prepare).
    """

    stage: str
    output: str
    work: str = FINISHED
    amount: float = 0.0
    unit: str = ""
    rate: Rate | None = None
    option: str = ""
    workers: int = 1
    gpus: int = 0
    size: float = 0.0
    notes: tuple[str, ...] = ()
    captions: Mapping[str, int] = field(default_factory=dict)

    @property
    def hours(self) -> float | None:
        """Hours of work, without starting processes and models; None if the speed is unknown."""
        if not self.amount:
            return 0.0
        return None if self.rate is None else self.amount / (self.rate.per_second * self.workers) / 3600

    @property
    def gpu_hours(self) -> float | None:
        return None if self.hours is None else self.hours * self.workers * self.gpus


def without_flag(words: Sequence[str]) -> tuple[list[str], dict[str, str] | None]:
    """Take `--dry_run` and `--dry_run.OPTION VALUE` out of a command line.

    Returns:
        The other words, and the options by name; None for the latter if it is no dry run.
    """
    rest: list[str] = []
    options: dict[str, str] | None = None
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if name != FLAG and not name.startswith(f"{FLAG}."):
            rest.append(word)
            continue
        options = options or {}
        if name != FLAG:
            options[name.removeprefix(f"{FLAG}.")] = value if equals or not waiting else waiting.pop(0)
    return rest, options


def given(options: DryRunConfig, option: str) -> Rate | None:
    """Return the speed that the user gave, if any."""
    value = getattr(options, option)
    return None if value is None else Rate(per_second=value, origin=f"given as dry_run.{option}")


def show(plans: Sequence[Plan], options: DryRunConfig) -> None:
    """Print the plans, and check that their output fits.

    Raises:
        SettingError: a folder cannot be written, or its disk lacks room.
    """
    console.print(_table(plans, options.price_per_gpu_hour))
    notes = dict.fromkeys(note for plan in plans for note in plan.notes)
    for line in [*_speeds(plans), *notes]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in _room(plans):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print("dry run: no error was found, and nothing was written", highlight=False)


def _table(plans: Sequence[Plan], price: float | None) -> Table:
    table = Table(title="What would be done", title_justify="left")
    table.add_column("stage", no_wrap=True)
    table.add_column("left to do")
    for heading in ("hours", "GPU hours", *(("cost",) if price else ()), "GB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for plan in plans:
        cost = plan.gpu_hours and price and plan.gpu_hours * price
        table.add_row(
            plan.stage,
            plan.work,
            _number(plan.hours),
            _number(plan.gpu_hours),
            *((_number(cost),) if price else ()),
            _number(plan.size / GB),
        )
    if len(plans) > 1:
        hours, gpu_hours = (_sum([getattr(plan, name) for plan in plans]) for name in ("hours", "gpu_hours"))
        cost = None if gpu_hours is None or price is None else gpu_hours * price
        size = _number(sum(plan.size for plan in plans) / GB)
        table.add_section()
        table.add_row(
            "all", "", _number(hours), _number(gpu_hours), *((_number(cost),) if price else ()), size
        )
    return table


def _sum(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _number(value: float | None) -> str:
    if value is None:
        return MISSING
    return "0" if value == 0 else "<0.01" if value < 0.005 else f"{value:,.2f}"


def _speeds(plans: Sequence[Plan]) -> list[str]:
    """Return a line for each speed that hours rest on, and for each that is unknown, with the stages."""
    stages: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for plan in (plan for plan in plans if plan.amount):
        if plan.rate is not None:
            speed = plan.rate.per_second
            shown = f"{speed:,.0f}" if speed >= 100 else f"{speed:,.3g}"
            told = f"{shown} {plan.unit}/s ({plan.rate.origin}), {plan.workers:,} at once"
            stages["speed", told].append(plan.stage)
        elif plan.option:
            stages["hours", f"unknown; --dry_run.{plan.option} N gives them"].append(plan.stage)
    return [f"{what} of {', '.join(names)}: {told}" for (what, told), names in stages.items()]


def _room(plans: Sequence[Plan]) -> list[str]:
    """Return a line for each store that would be written.

    Raises:
        SettingError: a folder cannot be written, or its disk lacks room.
    """
    lines, needed, place = [], defaultdict[int, float](float), dict[int, Path]()
    for plan in (plan for plan in plans if plan.amount):
        if "://" in plan.output:
            lines.append(f"room: {plan.size / GB:,.2f} GB for {plan.output}; its free room is not known")
            continue
        existing = next(p for p in (Path(plan.output), *Path(plan.output).parents) if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise SettingError("output", plan.output, f"a folder that can be written; {existing} cannot")
        disk = existing.stat().st_dev
        needed[disk] += plan.size
        place.setdefault(disk, existing)
    for disk, size in needed.items():
        free = shutil.disk_usage(place[disk]).free
        if size > free:
            expected = f"a disk with room for {size / GB:,.2f} GB; it has {free / GB:,.2f} GB left"
            raise SettingError("output", str(place[disk]), expected)
        lines.append(f"room: {size / GB:,.2f} GB of the {free / GB:,.1f} GB left at {place[disk]}")
    return lines
