"""Benchmarks: ``python -m bench``. They print what they measured and judge nothing."""
