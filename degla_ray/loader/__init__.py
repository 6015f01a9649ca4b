"""The loader: data order, samples in memory, and decoding of batches by step."""
