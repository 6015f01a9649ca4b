"""Negatives by a language model: prompts, engines, answers, ledger."""
