"""Every number that a user reads has one format, whatever prints it."""

from __future__ import annotations

from degla_ray.number_formats import percent, percent_interval, points, signed


def test_percent_of_missing_and_partial_numbers_shows_a_dash_and_a_mark() -> None:
    assert [percent(0.8342), percent(None), percent(0.5, digits=0)] == ["83.4", "–", "50"]
    assert [percent(0.8342, partial=True), percent(None, partial=True)] == ["83.4†", "–†"]


def test_interval_without_an_end_is_empty() -> None:
    assert percent_interval(0.81, 0.856) == "81.0–85.6"
    assert percent_interval(None, 0.856) == percent_interval(0.81, None) == ""


def test_differences_have_a_sign_and_a_true_minus() -> None:
    assert [points(0.0321), points(-0.004), points(None)] == ["+3.2", "−0.4", ""]
    assert signed(-1.254, digits=2) == "−1.25"
