"""`python -m benchmarks.trajectories`: its exact trajectories, and its table."""

import numpy as np

from benchmarks.trajectories import COUNTS, GRID, TITLES, displacement_error, flow_error, make_example, render_table
from lfdm.motion.warp import flow_to_grid, warp


def test_exact_trajectories_lead_to_the_same_colours_and_back() -> None:
    example = make_example(1, "wave", 0)
    moved, video = example.trajectories, example.video
    grid = flow_to_grid(moved.displacement, corners=False)
    seen = moved.visibility[0, 0] > 0
    for k in (0, 7, 15):
        found = warp(video[:, :, k], grid[:, k : k + 1], padding_mode="border")[:, :, 0]
        error = (found - video[:, :, 0]).abs().mean(1)[0][seen[k]]
        assert error.median() < 0.01
        assert seen[k].float().mean() > 0.8
    assert moved.displacement[:, :, 0].abs().max() < 1e-5
    known = displacement_error(moved.displacement, example.exact)[0]
    assert known[0] < 0.25 * known[1]  # interpolated at the outlines of limbs
    exact = flow_error(moved.displacement, example.of_points())[0]
    assert exact[0] < 1e-3 * exact[1]


def test_a_cell_moves_with_the_figure_in_it() -> None:
    example = make_example(1, "wave", 0)
    trajectories, priority = example.reduced()
    assert trajectories.displacement.shape == (1, 2, 16, *GRID)
    figure = example.exact.figure[0, 0].numpy()
    assert (priority[0, 0].numpy() > 0).sum() == figure.reshape(32, 2, 32, 2).any(axis=(1, 3)).sum()
    last = example.trajectories.displacement[0, :, -1].numpy().reshape(2, 32, 2, 32, 2)
    pixels = np.where(figure.reshape(1, 32, 2, 32, 2), last, np.nan)
    some = ~np.isnan(pixels).all(axis=(2, 4))
    low, high = (one(pixels, axis=(2, 4), where=~np.isnan(pixels), initial=start) for one, start in ((np.min, 9), (np.max, -9)))
    cells = trajectories.displacement[0, :, -1].numpy()
    assert (cells >= low - 0.01)[some].all()
    assert (cells <= high + 0.01)[some].all()


def test_the_table_has_all_rows_and_counts() -> None:
    rows = {row: {str(count): 0.25 for count in (0, *COUNTS)} for row in (*TITLES, "backward")}
    text = render_table({"model": "m", "num_subjects": 1, "num_clips": 8, "num_fitted": 3, "rows": rows})
    assert all(title in text for title in TITLES.values())
    assert text.count("0.250") == len(TITLES) * (1 + len(COUNTS)) + 1
