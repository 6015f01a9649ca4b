"""Negatives written by a language model: prompts, engines, quality checks and the ledger of answers."""
