"""Distances between two sets of features, with their floor and their uncertainty.

`frechet_distance` (FID, FVD) is biased: with N samples it lies about c / N above the distance of the two distributions (Chong &
Forsyth, arXiv 1911.07023). A value is meaningful only next to its *floor*, the distance between two halves of the real samples,
and to the distance of generated and real samples at that same number. `estimate` returns all of these. `kernel_distance` (KID,
KVD) is unbiased.

Shapes: features (n, d), one row per video or frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lfdm.errors import UserError

Distance = Callable[[np.ndarray, np.ndarray], float]
"""Function of real features (n, d) and generated features (m, d)."""

CONFIDENCE = 0.95
"""Confidence of the intervals."""
NUM_SPLITS = 10
"""Random halvings of the real samples over which a floor is averaged."""
MIN_SAMPLES = 4
"""Real samples that a floor needs: two for each half."""
_BLOCK_ROWS = 1024
"""Rows of a kernel matrix computed at a time."""


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Return the squared 2-Wasserstein distance of two Gaussians with the samples' means and unbiased covariances, in float64.

    |mu_1 - mu_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2) (Heusel et al., arXiv 1706.08500; for videos Unterthiner et al.,
    arXiv 1812.01717). With C_i = A_i^T A_i the last trace is the sum of the singular values of A_1 A_2^T, a matrix at most as
    large as the number of samples or d. This needs no complex square root and no added diagonal, and is exact for any rank.

    Raises:
        UserError: other shapes, fewer than two samples on a side, or a feature that is not finite.
    """
    real, generated = _check(real, generated)
    a, b = _root(real), _root(generated)
    shift = real.mean(axis=0) - generated.mean(axis=0)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * cross))


def kernel_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Return the unbiased squared maximum mean discrepancy with kernel (x . y / d + 1)^3, which can be negative.

    KID (Binkowski et al., arXiv 1801.01401); on features of videos KVD (Unterthiner et al., arXiv 1812.01717). Uses all samples
    at once, which estimates the same quantity better than KID's average over subsets of 1,000.

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
    """A distance between real and generated samples, and the values to compare it with."""

    value: float
    """Distance of all real and all generated samples: the figure that is usually reported."""
    low: float
    """Lower end of the confidence interval of `value` at this number of samples."""
    high: float
    """Upper end of that interval."""
    floor: float
    """Distance of one half of the real samples to the other: the best value possible at `num_floor` samples."""
    value_at_floor: float
    """Distance of `num_floor` generated to `num_floor` real samples: to be compared with `floor`."""
    num_floor: int
    """Samples on either side of `floor` and `value_at_floor`."""
    num_real: int
    """Real samples of `value`."""
    num_generated: int
    """Generated samples of `value`."""
    dim: int
    """Features per sample."""


@dataclass(frozen=True, kw_only=True)
class GroupedEstimate:
    """One distance per class or subject: cFVD or sFVD."""

    mean: float
    """Unweighted mean of the groups' values."""
    std: float
    """Population standard deviation of the groups' values."""
    low: float
    """Lower end of the confidence interval of `mean`."""
    high: float
    """Upper end of that interval."""
    floor: float
    """Mean of the groups' floors."""
    value_at_floor: float
    """Mean of the groups' values at the size of their floor."""
    groups: dict[str, DistanceEstimate]
    """Estimate of every group, by name."""


def estimate(
    distance: Distance, real: np.ndarray, generated: np.ndarray, *, num_bootstrap: int = 200, allow_small: bool = False
) -> DistanceEstimate:
    """Return `distance` of real and generated features with its floor and its confidence interval.

    If both sides have as many rows they are resampled together: row i of both may then belong to the same clip (a generated video
    and the real one whose first frame it started from). For rows in arbitrary order that makes no difference.

    Args:
        num_bootstrap: half-samples from which the interval is computed; 0 = no interval (both ends are NaN).
        allow_small: accept fewer samples than features, where a Frechet distance is mostly bias.

    Raises:
        UserError: features that the distance refuses, fewer than four real samples, or a Frechet distance with fewer samples than
            features unless `allow_small`.
    """
    return _estimate(distance, real, generated, num_bootstrap, allow_small, "")[0]


def estimate_groups(
    distance: Distance,
    real: np.ndarray,
    generated: np.ndarray,
    groups: Sequence[str],
    *,
    num_bootstrap: int = 200,
    allow_small: bool = False,
) -> GroupedEstimate:
    """Return `estimate` of every group, and the mean and standard deviation of their values.

    Args:
        groups: class or subject of row i of both sides, (n,).

    Raises:
        UserError: as `estimate`, naming the group.
    """
    members = {name: [i for i, group in enumerate(groups) if group == name] for name in sorted(set(groups))}
    pairs = {
        name: _estimate(distance, real[rows], generated[rows], num_bootstrap, allow_small, f" of group {name!r}")
        for name, rows in members.items()
    }
    estimates = {name: estimated for name, (estimated, _) in pairs.items()}
    values = np.array([e.value for e in estimates.values()])
    low, high = _interval(float(values.mean()), np.mean([distances for _, distances in pairs.values()], axis=0))
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
    distance: Distance, real: np.ndarray, generated: np.ndarray, num_bootstrap: int, allow_small: bool, where: str
) -> tuple[DistanceEstimate, np.ndarray]:
    """Return the estimate and the distances of the half-samples (num_bootstrap,)."""
    real, generated = _check(real, generated)
    (n, dim), m = real.shape, len(generated)
    if n < MIN_SAMPLES:
        raise UserError(f"a floor needs at least {MIN_SAMPLES} real samples{where}; got {n}")
    if distance is frechet_distance and min(n, m) < dim and not allow_small:
        raise UserError(
            f"a Frechet distance of {dim} features needs at least {dim} samples on either side{where}; got {n} real and {m} "
            f"generated. Use more clips, or allow_small=True (--allow-small) to report a value that is mostly bias"
        )
    value = distance(real, generated)
    rng = np.random.default_rng(0)
    num_floor = min(n // 2, m)
    floors, comparable = [], []
    for _ in range(NUM_SPLITS):
        order = rng.permutation(n)
        first, second = order[:num_floor], order[num_floor : 2 * num_floor]
        others = second if m == n else rng.permutation(m)[:num_floor]  # other clips than `first`, as in the floor
        floors.append(distance(real[first], real[second]))
        comparable.append(distance(real[first], generated[others]))
    distances = _half_samples(distance, real, generated, num_bootstrap, rng)
    low, high = _interval(value, distances)
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
    return estimated, distances


def _half_samples(distance: Distance, real: np.ndarray, generated: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Return the distances of `num` random halves of both sides, sampled without replacement, (num,)."""
    n, m = len(real), len(generated)
    distances = []
    for _ in range(num):
        rows = rng.permutation(n)[: max(2, n // 2)]
        others = rows if m == n else rng.permutation(m)[: max(2, m // 2)]
        distances.append(distance(real[rows], generated[others]))
    return np.array(distances)


def _interval(value: float, distances: np.ndarray) -> tuple[float, float]:
    """Return the confidence interval of the expected distance at this number of samples, from distances of half-samples.

    The usual bootstrap samples with replacement. Repeated samples add the same bias again, so its distances lie about as far
    above `value` as `value` lies above the truth, and a percentile interval need not even contain `value`. Half-samples without
    replacement repeat nothing, and spread around their mean as `value` does around its own: half of the samples give twice the
    variance, of which sampling from a finite set leaves half (the delete-half jackknife; Shao & Wu, Annals of Statistics 17,
    1989). Only that spread is used, reflected around `value` as in the basic bootstrap (Davison & Hinkley 1997, section 5.2).
    """
    if not len(distances):
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE) / 2
    below, above = np.quantile(distances - distances.mean(), (tail, 1 - tail))
    return float(value - above), float(value - below)


def _check(real: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both in float64; raises UserError for other shapes or values that are not finite."""
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
    """Return A with at most min(n, d) rows such that A^T A is the unbiased covariance of `features`."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


def _kernel(product: np.ndarray, dim: int) -> np.ndarray:
    return (product / dim + 1) ** 3


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    """Return the sum of k(x_i, y_j) over all i and j."""
    return float(sum(_kernel(x[i : i + _BLOCK_ROWS] @ y.T, x.shape[1]).sum() for i in range(0, len(x), _BLOCK_ROWS)))
