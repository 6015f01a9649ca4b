"""Negative captions: kinds, engines, checks and the stage that writes them."""
