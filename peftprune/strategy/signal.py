from enum import StrEnum


class Signal(StrEnum):
    """An activation statistic that a strategy may request. Values cover the current optimizer step only."""

    INPUT_NORM = "input_norm"
    """Per site a (d_in,) tensor: the L2 norm of each input feature over the step's tokens, padding excluded."""

    OUTPUT_ENERGY = "output_energy"
    """Per site a scalar tensor: the sum over the step's tokens of ‖scaling · B A x‖², padding excluded."""

    INPUT_MOMENTS = "input_moments"
    """Per site a (d_in + 1, d_in + 1) tensor: the sum of y yᵀ over the step's tokens, where y is the input with a 1
    appended, padding excluded. It holds the second moments, the sums and the number of tokens. Sites that read the same
    input get the same tensor object. It costs d_in² per token: limit it to the phases that need it."""

    LABEL_MOMENTS = "label_moments"
    """As INPUT_MOMENTS, over the tokens that have a label, which generation tasks give a decoder; over all real tokens
    at sites whose tokens have none."""

    DELTA_GRADIENT = "delta_gradient"
    """Per site a (d_out, d_in) tensor: the gradient of the step's loss, before clipping, with respect to ΔW =
    scaling · B A. It costs d_out · d_in per token, as much as training the layer itself; a forward-only phase has
    none."""
