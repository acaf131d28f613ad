"""Schedules of a budget over the steps of a run."""


def cubic_decay(start: float, end: float, progress: float) -> float:
    """Returns AdaLoRA's cubic decay, fast at first and slow at last: end + (start − end) · (1 − progress)³.

    Source: Zhang et al., ICLR 2023 (AdaLoRA), section 3.3.
    """
    return (start - end) * (1 - progress) ** 3 + end


def cubic_fade(start: float, progress: float) -> float:
    """Returns ElaLoRA's decay to 0, slow at first and fast at last: start · (1 − progress³).

    Source: code of ElaLoRA (2025), the scheduler of b.
    """
    return start * (1 - progress**3)
