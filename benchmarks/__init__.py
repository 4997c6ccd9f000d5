"""Benchmarks against other packages: `python -m benchmarks step|input|scale`."""
