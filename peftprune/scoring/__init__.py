"""Importance scores: pure functions on tensors, without schedules or models.

`__init__.pyi` lists them. They are imported on first use, so that a method can be described without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
