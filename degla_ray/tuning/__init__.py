"""Sweeps over training settings and over interpolations between two models."""
