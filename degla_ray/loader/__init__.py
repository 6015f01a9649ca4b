"""Batches by step number: order, samples, decoding."""
