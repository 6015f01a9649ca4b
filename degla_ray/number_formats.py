"""Formats of numbers in messages, console lines, tables and pages."""

from __future__ import annotations

MISSING = "–"


def percent(fraction: float | None, *, digits: int = 1, partial: bool = False) -> str:
    """Return a fraction as percent without the unit, e.g. `83.4`; a dash for None.

    Args:
        fraction: 0 to 1, or None.
        digits: digits after the decimal point.
        partial: whether the number lacks some of its items, which is marked with `†`.
    """
    number = MISSING if fraction is None else f"{100 * fraction:.{digits}f}"
    return f"{number}†" if partial else number


def percent_interval(low: float | None, high: float | None) -> str:
    """Return an interval of fractions in percent, e.g. `81.0–85.6`; an empty string for None."""
    return "" if low is None or high is None else f"{percent(low)}–{percent(high)}"


def points(difference: float | None) -> str:
    """Return a difference of fractions in percentage points, e.g. `+3.2`; an empty string for None."""
    return "" if difference is None else signed(100 * difference, digits=1)


def signed(number: float, *, digits: int) -> str:
    """Return a number with its sign, e.g. `+1.25`, with a true minus sign."""
    return f"{number:+.{digits}f}".replace("-", "−")
