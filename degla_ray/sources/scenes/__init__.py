"""Rendered scenes: generated images with exactly known content."""
