"""Plots of single results: arrays and matplotlib axes in, axes out.

Every function takes plain arrays or lists, draws on the axes `ax` and returns them; None makes a new figure of at most
10 inches. With `legend`, series are named at the right. The package does not use pyplot or the global style, so it
works without a display and beside other plots. No information is carried by colour alone.

`facets` makes axes for several plots in one figure; `plot_rank_panels` makes a whole figure.
"""

from peftprune.plots.average_ranks import average_rank_diagram as average_rank_diagram
from peftprune.plots.average_ranks import not_distinguished as not_distinguished
from peftprune.plots.axes import facets as facets
from peftprune.plots.cost import cost_by_phase as cost_by_phase
from peftprune.plots.curves import learning_curves as learning_curves
from peftprune.plots.forest import forest as forest
from peftprune.plots.heatmap import density_heatmap as density_heatmap
from peftprune.plots.heatmap import overlap_matrix as overlap_matrix
from peftprune.plots.heatmap import rank_heatmap as rank_heatmap
from peftprune.plots.labels import short_kinds as short_kinds
from peftprune.plots.legends import colour_bar as colour_bar
from peftprune.plots.legends import common_legend as common_legend
from peftprune.plots.panels import plot_rank_panels as plot_rank_panels
from peftprune.plots.quality import quality_against_parameters as quality_against_parameters
from peftprune.plots.rank_lines import rank_lines as rank_lines
from peftprune.plots.rank_lines import rank_over_training as rank_over_training
from peftprune.plots.sharing import sharing_map as sharing_map
