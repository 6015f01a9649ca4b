"""Rendered scenes: pictures made here, of which everything true and false is known."""
