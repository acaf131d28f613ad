"""Libraries for modules that must load without them, and their types: each is imported when it is first used."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets as datasets
    import pandas as pandas
    import peft as peft
    import torch as torch
    import transformers as transformers
    from datasets import Dataset as Dataset
    from matplotlib.figure import Figure as Figure
    from torch import Tensor as Tensor
    from torch import nn as nn
    from torch.nn import Module as Module
else:

    class _OnFirstUse(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(import_module(self.__name__), name)

        def __reduce__(self) -> Any:
            return import_module, (self.__name__,)

    datasets, pandas, peft, transformers = map(_OnFirstUse, ("datasets", "pandas", "peft", "transformers"))
    torch, nn = map(_OnFirstUse, ("torch", "torch.nn"))
    # Annotations only.
    Dataset = Figure = Module = Tensor = Any
