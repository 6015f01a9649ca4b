"""Switches and addresses, without starting Ray."""

from __future__ import annotations

import os

import pytest

from degla_ray import ray_setup


def test_set_environment_keeps_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("RAY_TRAIN_V2_ENABLED", raising=False)
    ray_setup.set_environment()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["RAY_TRAIN_V2_ENABLED"] == "1"
