"""peftprune: compare LoRA rank-pruning methods under identical, verified budgets.

    import peftprune
    result = peftprune.compare(["lora", "lorpa"], task="rte", data_dir="glue", budget="rank=8")
    result.table()

`__init__.pyi` lists the public names. They are imported on first use, so that `import peftprune` is fast.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
