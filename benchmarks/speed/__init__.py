"""Measures the speed of training on the machine it runs on; `python -m benchmarks.speed --help` explains it.

Every figure is a ratio of times measured side by side in one run.
"""
