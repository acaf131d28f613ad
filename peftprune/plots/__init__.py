"""Plots of single results: arrays and matplotlib axes in, axes out.

Every function takes plain arrays or lists, draws on the given axes and returns them; None makes a new figure of at most
10 inches. The package does not use pyplot or the global style, so it works without a display and beside other plots. No
information is carried by colour alone.

`facets` makes axes for several plots in one figure; `plot_rank_panels` makes a whole figure.
"""

from peftprune.plots.average_ranks import average_rank_diagram, not_distinguished
from peftprune.plots.cost import cost_by_phase
from peftprune.plots.curves import learning_curves
from peftprune.plots.facets import common_legend, facets
from peftprune.plots.forest import forest
from peftprune.plots.heatmap import density_heatmap, rank_heatmap
from peftprune.plots.labels import short_kinds
from peftprune.plots.legends import colour_bar
from peftprune.plots.lines import rank_lines
from peftprune.plots.overlap import overlap_matrix
from peftprune.plots.panels import plot_rank_panels
from peftprune.plots.quality import quality_against_parameters
from peftprune.plots.sharing import sharing_map
from peftprune.plots.training import rank_over_training

__all__ = [
    "average_rank_diagram",
    "colour_bar",
    "common_legend",
    "cost_by_phase",
    "density_heatmap",
    "facets",
    "forest",
    "learning_curves",
    "not_distinguished",
    "overlap_matrix",
    "plot_rank_panels",
    "quality_against_parameters",
    "rank_heatmap",
    "rank_lines",
    "rank_over_training",
    "sharing_map",
    "short_kinds",
]
