from itertools import product

import numpy as np
import pytest

from lfdm.errors import UserError
from lfdm.evaluation.metrics.frechet import DistanceEstimate, estimate, estimate_groups, frechet_distance, kernel_distance

linalg = pytest.importorskip("scipy.linalg", reason="needs scipy: pip install 'lfdm[dev]'")


def samples(n: int, d: int, seed: int, *, shift: float = 0.0, scale: float = 1.0, rank: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n, d if rank is None else rank))
    return shift + scale * (factors if rank is None else factors @ rng.normal(size=(rank, d)))


def whitened(x: np.ndarray) -> np.ndarray:
    """The samples moved so that their mean is exactly 0 and their covariance exactly 1."""
    x = x - x.mean(axis=0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def by_sqrtm(real: np.ndarray, generated: np.ndarray) -> float:
    """The formula as FID and FVD codes write it."""
    c1, c2 = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    shift = real.mean(axis=0) - generated.mean(axis=0)
    return float(shift @ shift + np.trace(c1) + np.trace(c2) - 2 * np.trace(linalg.sqrtm(c1 @ c2)).real)


def test_closed_forms_of_gaussians() -> None:
    x = whitened(samples(200, 5, 0))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x + np.arange(5)) == pytest.approx(0 + 1 + 4 + 9 + 16)
    spread = np.array([0.5, 1, 1, 2, 3])
    assert frechet_distance(x, x * spread) == pytest.approx(((spread - 1) ** 2).sum())  # commuting covariances
    y = whitened(samples(90, 5, 1))  # other samples, other number, the same two moments
    assert frechet_distance(x, y * spread + 1) == pytest.approx(((spread - 1) ** 2).sum() + 5)


def test_one_dimension_is_the_distance_of_means_and_deviations() -> None:
    x, y = samples(40, 1, 0), samples(60, 1, 1, shift=2, scale=3)
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "m", "d"), [(100, 120, 8), (60, 60, 60), (9, 30, 20), (15, 12, 40)])
def test_agrees_with_scipys_square_root(n: int, m: int, d: int) -> None:
    """Also where covariances have not full rank: there sqrtm itself is good to some 1e-7 of the trace."""
    x, y = samples(n, d, 0), samples(m, d, 1, shift=0.3, scale=1.5)
    assert frechet_distance(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-9 if min(n, m) > d else 1e-6)


def test_rank_deficient_covariances_in_closed_form() -> None:
    """Samples in two planes that share one axis: what lies across the other plane counts with its whole variance."""
    plane = whitened(samples(50, 2, 0))
    x, y = np.zeros((50, 6)), np.zeros((50, 6))
    x[:, :2] = plane * (2, 3)
    y[:, 1:3] = plane * (5, 7)
    # the covariance between the axes of one plane is zero, so that variances 4, 9, 0 meet 0, 25, 49
    assert frechet_distance(x, y) == pytest.approx(4 + (3 - 5) ** 2 + 49)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_few_samples_in_many_dimensions_are_measured_in_their_span() -> None:
    x, y = samples(10, 6, 0), samples(12, 6, 1)
    rotation = np.linalg.qr(samples(4000, 6, 2))[0]  # into 4,000 dimensions, lengths kept
    assert frechet_distance(x @ rotation.T, y @ rotation.T) == pytest.approx(frechet_distance(x, y))


def test_float32_features_are_measured_in_float64() -> None:
    x, y = samples(500, 3, 0, shift=1000), samples(500, 3, 1, shift=1000)
    single = frechet_distance(x.astype(np.float32), y.astype(np.float32))
    assert single == pytest.approx(frechet_distance(x, y), rel=1e-3)


def test_kernel_distance_is_its_formula_written_out() -> None:
    x, y = samples(7, 3, 0), samples(5, 3, 1, shift=0.5)
    k = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    within_x = np.mean([k(x[i], x[j]) for i, j in product(range(7), repeat=2) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i, j in product(range(5), repeat=2) if i != j])
    between = np.mean([k(a, b) for a, b in product(x, y)])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * between)


def test_kernel_distance_has_no_bias_and_frechet_distance_has() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(20, 4)), rng.normal(size=(20, 4))) for _ in range(400)]
    kernel = np.array([kernel_distance(x, y) for x, y in pairs])
    assert abs(kernel.mean()) < 4 * kernel.std() / np.sqrt(len(pairs))
    assert kernel.min() < 0
    assert np.mean([frechet_distance(x, y) for x, y in pairs]) > 0.5


def test_kernel_distance_in_several_blocks_of_rows() -> None:
    x = samples(1500, 2, 0)
    weights = x.sum(axis=1)
    assert kernel_distance(x, -x) == pytest.approx(kernel_distance(x[np.argsort(weights)], -x))


@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (np.zeros((5, 3)), np.zeros((5, 4)), r"got \(5, 3\) and \(5, 4\)"),
        (np.zeros((1, 3)), np.zeros((5, 3)), r"n and m at least 2; got \(1, 3\)"),
        (np.zeros(3), np.zeros(3), r"must be \(n, d\) and \(m, d\)"),
        (np.zeros((4, 3)), np.full((4, 3), np.nan), "generated features must be finite"),
    ],
)
def test_refuses_what_are_no_features(real: np.ndarray, generated: np.ndarray, message: str) -> None:
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(UserError, match=message):
            distance(real, generated)


def test_refuses_fewer_samples_than_features_unless_told() -> None:
    x, y = samples(30, 20, 0), samples(19, 20, 1)
    with pytest.raises(UserError, match="20 samples on either side; got 30 real and 19"):
        estimate(frechet_distance, x, y)
    assert estimate(frechet_distance, x, y, num_bootstrap=5, allow_small=True).value == frechet_distance(x, y)
    assert estimate(kernel_distance, x, y, num_bootstrap=5).value == kernel_distance(x, y)  # has no bias to refuse


def test_refuses_fewer_real_samples_than_a_floor_needs() -> None:
    x = samples(8, 2, 0)
    with pytest.raises(UserError, match="4 real samples; got 3"):
        estimate(frechet_distance, x[:3], x)


def test_floor_and_value_are_compared_at_the_same_number_of_samples() -> None:
    """Generated samples of the very distribution: at the floor's size they score the floor, at full size far less."""
    estimates = [
        estimate(frechet_distance, samples(80, 10, 2 * i), samples(80, 10, 2 * i + 1), num_bootstrap=0) for i in range(60)
    ]
    floor, at_floor, value = (np.mean([getattr(e, name) for e in estimates]) for name in ("floor", "value_at_floor", "value"))
    assert at_floor == pytest.approx(floor, rel=0.06)
    assert value < 0.7 * floor
    assert {(e.num_floor, e.num_real, e.num_generated, e.dim) for e in estimates} == {(40, 80, 80, 10)}
    assert np.isnan(estimates[0].low)


def test_few_generated_samples_set_the_size_of_the_floor() -> None:
    few = estimate(frechet_distance, samples(80, 3, 0), samples(12, 3, 1), num_bootstrap=10)
    assert (few.num_floor, few.num_generated) == (12, 12)
    assert few.low < few.value < few.high


def test_a_floor_never_pairs_a_clip_with_its_own_video() -> None:
    """Videos that copy their clips: pair by pair nothing differs, yet at the floor's size they are other clips."""
    x = samples(40, 4, 0)
    copied = estimate(frechet_distance, x, x, num_bootstrap=20)
    assert copied.value == pytest.approx(0, abs=1e-12)
    assert copied.value_at_floor == copied.floor > 0.1
    assert copied.low == pytest.approx(0, abs=1e-9)  # resampled together, copies stay copies
    assert copied.high == pytest.approx(0, abs=1e-9)


def test_estimates_are_reproducible() -> None:
    x, y = samples(30, 3, 0), samples(30, 3, 1)
    assert estimate(frechet_distance, x, y, num_bootstrap=20) == estimate(frechet_distance, x, y, num_bootstrap=20)


def coverage(n: int, d: int, shift: float, *, repetitions: int) -> tuple[float, float]:
    """Return how often our interval contains the expected distance at n samples, and how often a percentile bootstrap's does."""
    rng = np.random.default_rng(0)
    draw = lambda: (rng.normal(size=(n, d)), rng.normal(size=(n, d)) + shift)  # noqa: E731
    expected = np.mean([frechet_distance(*draw()) for _ in range(800)])
    assert expected > d * shift**2  # the bias
    ours = percentile = 0
    for _ in range(repetitions):
        x, y = draw()
        found = estimate(frechet_distance, x, y, num_bootstrap=60)
        ours += found.low <= expected <= found.high
        rows = rng.integers(n, size=(60, n))
        low, high = np.quantile([frechet_distance(x[r], y[r]) for r in rows], (0.025, 0.975))
        percentile += low <= expected <= high
    return ours / repetitions, percentile / repetitions


def test_intervals_cover_the_expected_distance_where_a_percentile_bootstrap_does_not() -> None:
    ours, percentile = coverage(60, 8, 0.4, repetitions=50)
    assert ours >= 0.86
    assert percentile < 0.7


def test_groups_have_a_mean_a_deviation_and_their_own_estimates() -> None:
    x = samples(60, 2, 0)
    groups = [("wave", "jump", "walk")[i % 3] for i in range(60)]
    y = x + np.array([{"wave": 1.0, "jump": 2.0, "walk": 4.0}[g] for g in groups])[:, None] * (1, 0)
    found = estimate_groups(frechet_distance, x, y, groups, num_bootstrap=10)
    assert {name: e.value for name, e in found.groups.items()} == pytest.approx({"jump": 4, "walk": 16, "wave": 1})
    assert found.mean == pytest.approx(7)
    assert found.std == pytest.approx(np.std([1, 4, 16]))
    assert found.low == pytest.approx(7)  # every half-sample of a shifted copy is shifted as far
    assert found.high == pytest.approx(7)
    one = found.groups["wave"]
    assert isinstance(one, DistanceEstimate)
    assert (one.num_real, one.num_floor) == (20, 10)
    assert found.floor == pytest.approx(np.mean([e.floor for e in found.groups.values()]))
    assert found.floor > 0


def test_the_interval_of_a_mean_over_groups_is_narrower_than_the_groups_own() -> None:
    x, y = samples(160, 2, 0), samples(160, 2, 1, shift=0.5)
    found = estimate_groups(frechet_distance, x, y, [f"group {i % 4}" for i in range(160)], num_bootstrap=100)
    widths = [e.high - e.low for e in found.groups.values()]
    assert found.high - found.low == pytest.approx(np.sqrt(np.square(widths).sum()) / 4, rel=0.3)


def test_groups_refuse_as_their_members_do() -> None:
    x = samples(12, 2, 0)
    with pytest.raises(UserError, match="of group 'b'; got 2"):
        estimate_groups(frechet_distance, x, x, ["a"] * 10 + ["b"] * 2)
    wide = samples(12, 9, 0)
    with pytest.raises(UserError, match="at least 9 samples on either side of group 'a'; got 6 real and 6"):
        estimate_groups(frechet_distance, wide, wide, ["a", "b"] * 6)
