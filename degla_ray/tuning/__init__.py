"""Sweeps over loss weights and over interpolations."""
