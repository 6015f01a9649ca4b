"""Download, verify and unpack the published benchmarks."""
