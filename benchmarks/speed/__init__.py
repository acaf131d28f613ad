"""How fast peftprune trains, measured on the machine it runs on. `python -m benchmarks.speed --help` lists the parts.

Every figure is a ratio of times that were measured side by side in one run.
"""
