"""Rendered scenes: images made here, of which everything true and false is known."""
