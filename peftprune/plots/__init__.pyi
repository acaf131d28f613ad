"""The plots, for type checkers; `__init__.py` loads them lazily from here."""

from .average_ranks import average_rank_diagram as average_rank_diagram
from .axes import facets as facets
from .cost import cost_by_phase as cost_by_phase
from .curves import learning_curves as learning_curves
from .forest import forest as forest
from .heatmap import density_heatmap as density_heatmap
from .heatmap import overlap_matrix as overlap_matrix
from .heatmap import rank_heatmap as rank_heatmap
from .labels import short_kinds as short_kinds
from .legends import colour_bar as colour_bar
from .legends import common_legend as common_legend
from .panels import plot_rank_panels as plot_rank_panels
from .quality import quality_against_parameters as quality_against_parameters
from .rank_lines import rank_lines as rank_lines
from .rank_lines import rank_over_training as rank_over_training
from .sharing import sharing_map as sharing_map
