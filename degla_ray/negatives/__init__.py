"""Negative captions: engines, checks and the stage that writes them."""
