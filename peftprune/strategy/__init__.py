"""The interface of a method: the classes that a strategy subclasses, reads and returns. Imports no torch.

`__init__.pyi` lists them; they are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
