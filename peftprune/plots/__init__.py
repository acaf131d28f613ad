"""Plots of single results: arrays and matplotlib axes in, axes out.

Every function takes plain arrays or lists, draws on the axes `ax` and returns them; None makes a new figure of at most
10 inches. With `legend`, series are named at the right. The package does not use pyplot or the global style, so it
works without a display and beside other plots. No information is carried by colour alone.

`facets` makes axes for several plots in one figure; `plot_rank_panels` makes a whole figure.

`__init__.pyi` lists the functions; they are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
