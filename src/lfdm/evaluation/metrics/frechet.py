"""Distances between two sets of features, with their floor and their uncertainty.

`frechet_distance` (FID, FVD) depends on how many samples there are: at N samples it lies about c / N above the distance of the
two distributions (Chong & Forsyth, arXiv 1911.07023). So a figure means something only beside the *floor*: how far two halves of
the real samples are apart, and how far generated samples are from real ones at that same number of samples. `estimate` gives all
of these; `kernel_distance` (KID, KVD) has no such bias.

Shapes: features (n, d), one row per video or frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lfdm.errors import UserError

Distance = Callable[[np.ndarray, np.ndarray], float]
"""Of real features (n, d) and generated ones (m, d)."""

NUM_SPLITS = 10
"""Random halvings of the real samples over which a floor is averaged."""

_ROWS = 1024
"""Rows of a kernel matrix that are held at a time."""


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """The squared 2-Wasserstein distance of the two Gaussians with the means and (unbiased) covariances of the samples.

    |mu_1 - mu_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2) (Heusel et al., arXiv 1706.08500; of videos: Unterthiner et al.,
    arXiv 1812.01717), in float64. With C_i = A_i^T A_i the last trace is the sum of the singular values of A_1 A_2^T, whose shape
    is bounded by the number of samples as well as by d: no complex square root, nothing added to the diagonal, exact for
    covariances of any rank, and n < d costs less, not more.

    Raises:
        UserError: other shapes, fewer than two samples on a side, or a feature that is not finite.
    """
    real, generated = _check(real, generated)
    a, b = _root(real), _root(generated)
    shift = real.mean(axis=0) - generated.mean(axis=0)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * cross))


def kernel_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x . y / d + 1)^3, which may come out negative.

    KID (Binkowski et al., arXiv 1801.01401) over features of videos: KVD (Unterthiner et al., arXiv 1812.01717). All samples
    are used at once; the average over subsets of 1,000 that KID's code takes estimates the same number less well.

    Raises:
        UserError: other shapes, fewer than two samples on a side, or a feature that is not finite.
    """
    real, generated = _check(real, generated)
    n, m = len(real), len(generated)
    within_real = (_kernel_sum(real, real) - _kernel(np.square(real).sum(axis=1), real.shape[1]).sum()) / (n * (n - 1))
    within_generated = (_kernel_sum(generated, generated) - _kernel(np.square(generated).sum(axis=1), real.shape[1]).sum()) / (
        m * (m - 1)
    )
    return float(within_real + within_generated - 2 * _kernel_sum(real, generated) / (n * m))


@dataclass(frozen=True, kw_only=True)
class DistanceEstimate:
    """A distance between real and generated samples, and what it can be compared with."""

    value: float
    """Of all real samples and all generated ones: the figure that is usually printed."""
    low: float
    """Lower end of the interval of `value` at this number of samples."""
    high: float
    """Its upper end."""
    floor: float
    """Of one half of the real samples and the other: the best that could be reached, at `num_floor` samples a side."""
    value_at_floor: float
    """Of generated and real samples, `num_floor` of each: what to compare with `floor`."""
    num_floor: int
    """Samples on either side of `floor` and of `value_at_floor`."""
    num_real: int
    """Real samples of `value`."""
    num_generated: int
    """Generated samples of `value`."""
    dim: int
    """Numbers per sample."""


@dataclass(frozen=True, kw_only=True)
class GroupedEstimate:
    """One distance per class or subject: cFVD or sFVD."""

    mean: float
    """Of the groups' values, every group counting alike."""
    std: float
    """Their standard deviation (of these groups: divided by their number)."""
    low: float
    """Lower end of the interval of `mean` at these numbers of samples."""
    high: float
    """Its upper end."""
    floor: float
    """Mean of the groups' floors."""
    value_at_floor: float
    """Mean of the groups' values at the size of their floor."""
    groups: dict[str, DistanceEstimate]
    """Every group's own figures, by name."""


def estimate(
    distance: Distance,
    real: np.ndarray,
    generated: np.ndarray,
    *,
    num_bootstrap: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    allow_small: bool = False,
) -> DistanceEstimate:
    """`distance` of real and generated features, its floor and its interval.

    Where both sides have as many rows they are resampled together, so that row i of both may belong to the same clip (a generated
    video and the real one whose first frame it was given). Rows in no order at all are resampled as rightly.

    Args:
        num_bootstrap: half-samples that the interval is made of; 0 = no interval (both ends are NaN).
        confidence: of the interval, in (0, 1).
        seed: of the halves.
        allow_small: take fewer samples than features, where a Frechet distance is mostly bias.

    Raises:
        UserError: features that the distance refuses, fewer than four real samples, a value out of its range, or a Frechet
            distance with fewer samples than features unless `allow_small`.
    """
    estimated, _ = _estimate(distance, real, generated, num_bootstrap, confidence, seed, allow_small, "")
    return estimated


def grouped(
    distance: Distance,
    real: np.ndarray,
    generated: np.ndarray,
    groups: Sequence[str],
    *,
    num_bootstrap: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    allow_small: bool = False,
) -> GroupedEstimate:
    """`estimate` of every group alone, and their mean +- standard deviation.

    Args:
        groups: the class or subject of row i of both sides, (n,).

    Raises:
        UserError: as `estimate`, naming the group; real, generated and groups of different lengths.
    """
    if not len(real) == len(generated) == len(groups) or not len(groups):
        raise UserError(f"real, generated and groups must be of one length; got {len(real)}, {len(generated)} and {len(groups)}")
    members = {name: [i for i, group in enumerate(groups) if group == name] for name in sorted(set(groups))}
    pairs = {
        name: _estimate(
            distance, real[rows], generated[rows], num_bootstrap, confidence, seed, allow_small, f" of group {name!r}"
        )
        for name, rows in members.items()
    }
    estimates = {name: estimated for name, (estimated, _) in pairs.items()}
    values = np.array([e.value for e in estimates.values()])
    low, high = _interval(float(values.mean()), np.mean([draws for _, draws in pairs.values()], axis=0), confidence)
    return GroupedEstimate(
        mean=float(values.mean()),
        std=float(values.std()),
        low=low,
        high=high,
        floor=float(np.mean([e.floor for e in estimates.values()])),
        value_at_floor=float(np.mean([e.value_at_floor for e in estimates.values()])),
        groups=estimates,
    )


def _estimate(
    distance: Distance,
    real: np.ndarray,
    generated: np.ndarray,
    num_bootstrap: int,
    confidence: float,
    seed: int,
    allow_small: bool,
    where: str,
) -> tuple[DistanceEstimate, np.ndarray]:
    """The estimate, and the distances of the half-samples (num_bootstrap,)."""
    real, generated = _check(real, generated)
    (n, dim), m = real.shape, len(generated)
    if n < 4:
        raise UserError(f"a floor needs at least 4 real samples{where}, two for each half; got {n}")
    if distance is frechet_distance and min(n, m) < dim and not allow_small:
        raise UserError(
            f"a Frechet distance of {dim} features needs at least {dim} samples on either side{where}; got {n} real and {m} "
            f"generated. Take more clips, or set allow_small=True: the figure is then mostly bias: read it beside its floor"
        )
    if not 0 < confidence < 1 or num_bootstrap < 0:
        raise UserError(f"confidence must be in (0, 1) and num_bootstrap at least 0; got {confidence} and {num_bootstrap}")
    value = distance(real, generated)
    rng = np.random.default_rng(seed)
    num_floor = min(n // 2, m)
    floors, comparable = [], []
    for _ in range(NUM_SPLITS):
        order = rng.permutation(n)
        first, second = order[:num_floor], order[num_floor : 2 * num_floor]
        others = second if m == n else rng.permutation(m)[:num_floor]  # of other clips than `first`, as in the floor
        floors.append(distance(real[first], real[second]))
        comparable.append(distance(real[first], generated[others]))
    draws = _half_samples(distance, real, generated, num_bootstrap, rng)
    low, high = _interval(value, draws, confidence)
    estimated = DistanceEstimate(
        value=value,
        low=low,
        high=high,
        floor=float(np.mean(floors)),
        value_at_floor=float(np.mean(comparable)),
        num_floor=num_floor,
        num_real=n,
        num_generated=m,
        dim=dim,
    )
    return estimated, draws


def _half_samples(distance: Distance, real: np.ndarray, generated: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """The distance of random halves of both sides, drawn without replacement, (num,)."""
    n, m = len(real), len(generated)
    draws = []
    for _ in range(num):
        rows = rng.permutation(n)[: max(2, n // 2)]
        others = rows if m == n else rng.permutation(m)[: max(2, m // 2)]
        draws.append(distance(real[rows], generated[others]))
    return np.array(draws)


def _interval(value: float, draws: np.ndarray, confidence: float) -> tuple[float, float]:
    """The interval of the expected distance at this number of samples, from distances of half-samples.

    The usual bootstrap draws with replacement: its distances lie about as far above `value` as that lies above the truth, since
    repeated samples add the same bias again, and a percentile interval then need not even hold `value`. Half-samples without
    replacement repeat nothing, and spread as much around their own mean as `value` does around its own (half of the samples give
    twice the variance, of which drawing from a finite set leaves half: the delete-half jackknife, Shao & Wu, Annals of Statistics
    17, 1989). Only that spread is taken, turned around `value` as in the basic bootstrap (Davison & Hinkley 1997, section 5.2).
    """
    if not len(draws):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    below, above = np.quantile(draws - draws.mean(), (tail, 1 - tail))
    return float(value - above), float(value - below)


def _check(real: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, or UserError."""
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1] or min(len(real), len(generated)) < 2:
        raise UserError(
            f"real and generated must be (n, d) and (m, d) with n and m at least 2; got {real.shape} and {generated.shape}"
        )
    for name, features in (("real", real), ("generated", generated)):
        if not np.isfinite(features).all():
            raise UserError(
                f"{name} features must be finite; got NaN or infinity in {(~np.isfinite(features)).any(axis=1).sum()} rows"
            )
    return real.astype(np.float64), generated.astype(np.float64)


def _root(features: np.ndarray) -> np.ndarray:
    """A of at most min(n, d) rows with A^T A = the unbiased covariance of `features`."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


def _kernel(product: np.ndarray, dim: int) -> np.ndarray:
    return (product / dim + 1) ** 3


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    """The sum of k(x_i, y_j) over all i and j."""
    return float(sum(_kernel(x[i : i + _ROWS] @ y.T, x.shape[1]).sum() for i in range(0, len(x), _ROWS)))
