"""Clips whose motion is no action: the joints of a figure move at random.

Networks that learn to follow tracks need motion that no label explains.
"""

from lfdm.config.checks import check_number

FREE_LABEL = "free"
"""The label of clips with free motion."""
MAX_FREE_SHARE = 0.95


def count_free_takes(free_motion: float, num_takes: int) -> int:
    """Return the free takes of a subject that has `num_takes` others, so that their share of all is `free_motion`.

    Raises UserError for a share that is not allowed.
    """
    check_number("free_motion", free_motion, low=0, high=MAX_FREE_SHARE)
    return round(free_motion / (1 - free_motion) * num_takes)
