"""From a measured network to the noisy quadratic that stands for it: measured curvature, noise and start per direction.

The expected loss of SGD on a quadratic is a sum over eigenvalues λᵢ of a function of λᵢ times E θ₀ᵢ² plus another times
Fᵢᵢ. Of the eigenvectors it thus needs no more than the noise Σ Fᵢᵢ δ(λᵢ) and the displacement Σ θ₀ᵢ² δ(λᵢ) over the
spectrum. One Krylov space measures both on the same nodes as the density of states.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from noisysgd import theory
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray

if TYPE_CHECKING:
    from noisysgd.validation.measurement.measurement import Measurement

ROUNDING = 10 * float(np.finfo(np.float32).eps)
"""Share of the largest curvature up to which curvatures measured in single precision are rounding."""

UNALTERED = "Pass the Measurement or its as_dict(), unaltered."


@dataclass(frozen=True, repr=False)
class Calibration:
    """A noisy quadratic made from a measurement, with variants that tell its error and what had to be left out.

    Parameters
    ----------
    problem : theory.NoisyQuadratic
        The noisy quadratic itself.
    replicates : tuple of theory.NoisyQuadratic
        The problem with the noise of each independent group of units alone. The standard error of a prediction from the
        sampling of the noise is the standard deviation of the replicates' predictions over the root of their number.
    coarse : theory.NoisyQuadratic or None
        The problem from the first half of the Hessian products. As a rule, the error of a prediction of `problem` from
        having too few products is smaller than its distance to that of `coarse`.
    shifted : theory.NoisyQuadratic
        The problem with the curvature of every single eigenvalue increased by its residual, and every curvature by at
        least the rounding of single precision.
    dropped_modes : float
        Share of the directions that are left out, since a convex quadratic has none with negative or flat curvature.
    dropped_gradient, dropped_noise : float
        Shares of |g|² and tr F along the directions left out.
    negative_modes : float
        Share of the directions with curvature below −flat·λ_max.
    converged : bool
        Whether the spectrum had converged.
    """

    problem: theory.NoisyQuadratic
    replicates: tuple[theory.NoisyQuadratic, ...]
    coarse: theory.NoisyQuadratic | None
    shifted: theory.NoisyQuadratic
    dropped_modes: float
    dropped_gradient: float
    dropped_noise: float
    negative_modes: float
    converged: bool

    @classmethod
    def from_measurement(cls, measurement: "Measurement | Mapping[str, Any]", *, flat: float = 1e-3) -> Self:
        """Turn a measurement with a spectrum into a theory problem.

        The loss around the present parameters is taken to be a quadratic with the measured Hessian H and gradient g,
        with gradient noise of the measured covariance F everywhere. A node λ of weight w, with squared gradient g² and
        noise F, becomes w modes of curvature λ, noise F/w and E θ₀² = g²/(w λ²), the squared distance to the minimum of
        that quadratic. This distance is the strongest assumption, since a flat direction with a slope has its minimum
        far away. Directions with curvature at most flat·λ_max, including all of negative curvature, are therefore
        dropped: the result does not predict what the network does along them, but says how much gradient and noise they
        carried.

        Among nodes that are not single eigenvalues, only sums over an interval have a meaning: how noise or gradient
        alternate between neighbouring nodes depends on the Krylov space. The gradient is that of the loss which H
        belongs to; if H is that of a part of the training set, so is the gradient.

        Parameters
        ----------
        measurement : Measurement or mapping
            From :func:`noisysgd.validation.measure` with ``probes`` > 0, or its ``as_dict()`` as stored in a record.
        flat : float
            Curvature, as a share of λ_max, up to which a direction counts as flat, 0 ≤ flat < 1. Curvatures up to
            1.2·10⁻⁶ of λ_max count as flat in any case: rounding can make as much out of zero.

        Returns
        -------
        Calibration

        Raises
        ------
        ValueError
            If there is no spectrum, or it is not finite, or has no positive curvature or rows of different lengths; or
            if `flat` is out of range.

        Examples
        --------
        >>> spectrum = {"density": {"nodes": [2.0, -1.0], "draws": [[3.0, 1.0]], "converged": True},
        ...             "gradient": [4.0, 1.0], "noise": [[10.0, 30.0]]}
        >>> found = Calibration.from_measurement({"spectrum": spectrum, "dataset_size": 100})
        >>> found.dropped_modes, found.dropped_gradient, found.dropped_noise
        (0.25, 0.2, 0.75)
        """
        flat = checks.scalar("flat", flat)
        checks.require(0 <= flat < 1, "flat", "a share of λ_max, 0 ≤ flat < 1", flat, "1e-3 is the default.")
        remedy = "Measure with probes > 0, and pass the Measurement or its as_dict()."
        whole = isinstance(measurement, Mapping) or hasattr(measurement, "as_dict")
        checks.require(whole, "measurement", "a Measurement or its as_dict()", measurement, remedy)
        record = measurement if isinstance(measurement, Mapping) else measurement.as_dict()
        spectrum: Any = record.get("spectrum")
        known = spectrum is not None and record.get("dataset_size") is not None
        checks.require(known, "measurement", "a spectrum and a dataset_size", sorted(record), remedy)
        measures = _Measures.read(spectrum)
        top = float(measures.nodes.max())
        floor, size = max(flat, ROUNDING) * top, int(record["dataset_size"])
        coarse = _Measures.read(spectrum["coarse"], positive=False) if spectrum.get("coarse") else None
        # Half of the products may not reach beyond what counts as flat: then there is nothing to compare with.
        halved = coarse if coarse is not None and coarse.nodes.max() > floor else None
        # A convex quadratic has positive curvatures only, and those up to the floor put their minimum too far away.
        dropped = measures.nodes <= floor
        return cls(
            problem=measures.problem(measures.noise.mean(axis=0), floor, size),
            replicates=tuple(measures.problem(row, floor, size) for row in measures.noise),
            coarse=halved.problem(halved.noise.mean(axis=0), floor, size) if halved else None,
            shifted=measures.problem(measures.noise.mean(axis=0), floor, size, measures.uncertainty),
            dropped_modes=_share(measures.weights, dropped),
            dropped_gradient=_share(measures.gradient, dropped),
            dropped_noise=_share(measures.noise.mean(axis=0), dropped),
            negative_modes=_share(measures.weights, measures.nodes < -floor),
            converged=bool(spectrum["density"].get("converged", False)),
        )

    def __repr__(self) -> str:
        count, curvature = self.problem.weights, self.problem.eigenvalues
        return (
            f"<Calibration: {self.problem.dim} nodes for {count.sum():.6g} modes, "
            f"λ_max = {curvature.max():.4g}, tr H = {count @ curvature:.4g}, tr F = {count @ self.problem.noise:.4g}; "
            f"left out {self.dropped_modes:.0%} of the directions, {self.dropped_gradient:.0%} of |g|² and "
            f"{self.dropped_noise:.0%} of tr F>"
        )

    def predict(self, of: Callable[[theory.NoisyQuadratic], npt.ArrayLike]) -> tuple[FloatArray, FloatArray]:
        """A prediction for `problem`, and its error from `replicates`, `coarse` and `shifted`.

        The error adds three parts in quadrature: the standard error over the replicates for the sampling of the noise,
        the distance to `coarse` for the number of products, and that to `shifted` for the accuracy of the curvatures.
        Infinite where a replicate is, for a stated error should not be hidden by a divergence, and where `coarse` is
        None. The assumptions are not covered: that the loss is the quadratic of the measured state, that its noise
        stays what it was there, and that what was left out does not matter. Where curvature still changes fast, early
        in training above all, they are off by more than any stated error.

        Parameters
        ----------
        of : callable
            Maps a problem to a number or an array, such as an expected loss.

        Examples
        --------
        >>> density = {"nodes": [2.0, 1.0], "draws": [[1.0, 1.0]], "converged": True}
        >>> half = {"density": density, "gradient": [4.0, 1.0], "noise": [[1.0, 1.0]]}
        >>> spectrum = half | {"noise": [[2.0, 1.0], [4.0, 1.0]], "coarse": half}
        >>> found = Calibration.from_measurement({"spectrum": spectrum, "dataset_size": 100})
        >>> value, error = found.predict(lambda problem: problem.noise[0])
        >>> float(value), round(float(error), 6)  # 3, with 1 from the replicates and 2 from the coarse one
        (3.0, 2.236068)
        """

        def prediction(problem: theory.NoisyQuadratic) -> FloatArray:
            return np.asarray(of(problem), dtype=np.float64)

        value = prediction(self.problem)
        draws = np.array([prediction(problem) for problem in self.replicates])
        unknown = np.full(value.shape, np.inf)
        # Predictions may be infinite, such as a loss that diverges: the difference of two infinities says nothing.
        with np.errstate(invalid="ignore"):
            sampling = draws.std(axis=0, ddof=1) / np.sqrt(len(draws)) if len(draws) > 1 else unknown
            truncation = np.abs(value - prediction(self.coarse)) if self.coarse is not None else unknown
            error = np.sqrt(sampling**2 + truncation**2 + (value - prediction(self.shifted)) ** 2)
        return value, np.where(np.isnan(error), np.inf, error)


@dataclass(frozen=True, eq=False)
class _Measures:
    """Density of states, gradient and noise over common nodes, as read from a record.

    `nodes`, `weights`, `gradient` and `uncertainty`, the error of each node, have shape (n,); `noise` has shape
    (groups of units, n).
    """

    nodes: FloatArray
    weights: FloatArray
    gradient: FloatArray
    noise: FloatArray
    uncertainty: FloatArray

    @classmethod
    def read(cls, spectrum: object, *, positive: bool = True) -> Self:
        """Check and convert a spectrum; with `positive` it must have some positive curvature."""
        density = _field(spectrum, "density")
        raw = _listed(_field(density, "nodes"))
        checks.require(len(raw) > 0, "measurement", "at least one node", raw, UNALTERED)
        remedy = "The network has diverged: measure earlier."
        checks.require(all(x is not None for x in raw), "measurement", "finite nodes", raw, remedy)
        nodes = checks.vector("nodes", checks.real("nodes", raw))
        remedy = "No learning rate is critical here: measure another state."
        some = not positive or bool(nodes.max() > 0)
        checks.require(some, "measurement", "some positive curvature", nodes.max(), remedy)
        draws = _rows("density.draws", _field(density, "draws"), nodes.size)
        gradient = _rows("gradient", [_field(spectrum, "gradient")], nodes.size)[0]
        noise = _rows("noise", _field(spectrum, "noise"), nodes.size)
        # Only of a single eigenvalue does the residual bound the error: elsewhere a node is an average of eigenvalues.
        residuals = _rows("density.residuals", [density.get("residuals", np.zeros(nodes.size))], nodes.size)[0]
        residuals = np.where(np.asarray(density.get("single", np.zeros(nodes.size)), dtype=bool), residuals, 0.0)
        # H in single precision is known to rounding, however small the residual is.
        uncertainty = np.maximum(residuals, ROUNDING * np.abs(nodes).max())
        return cls(nodes, draws.mean(axis=0), gradient, noise, uncertainty)

    def problem(
        self, noise: FloatArray, floor: float, size: int, shift: FloatArray | None = None
    ) -> theory.NoisyQuadratic:
        """The quadratic of the nodes above `floor`, for `size` examples, with curvatures increased by `shift`."""
        kept = self.nodes > floor
        curvature = (self.nodes if shift is None else self.nodes + shift)[kept]
        # A node that the probes miss by chance still carries gradient and noise, which a weight of zero would lose.
        count = np.maximum(self.weights[kept], 1e-9)
        # At displacement θ the gradient is λθ, so that w modes with Σ (λθ)² = g² have θ² = g²/(w λ²) each.
        displacement = self.gradient[kept] / (count * curvature**2)
        return theory.NoisyQuadratic(curvature, noise[kept] / count, 0.0, displacement, size, count)


def calibrate(measurement: "Measurement | Mapping[str, Any]", *, flat: float = 1e-3) -> theory.NoisyQuadratic:
    """The noisy quadratic that equals a measured network to second order: the `problem` of :class:`Calibration`.

    Parameters
    ----------
    measurement, flat
        See :meth:`Calibration.from_measurement`, which also says what is left out.

    Returns
    -------
    NoisyQuadratic

    Examples
    --------
    >>> spectrum = {"density": {"nodes": [2.0, 1.0], "draws": [[1.0, 3.0]], "converged": True},
    ...             "gradient": [4.0, 3.0], "noise": [[10.0, 30.0]]}
    >>> problem = calibrate({"spectrum": spectrum, "dataset_size": 100})
    >>> problem.weights, problem.noise, problem.initial_second_moment  # per mode
    (array([1., 3.]), array([10., 10.]), array([1., 1.]))
    """
    return Calibration.from_measurement(measurement, flat=flat).problem


def _share(masses: FloatArray, chosen: npt.NDArray[np.bool_]) -> float:
    """The share of the total that the chosen entries have."""
    return float(masses[chosen].sum() / (masses.sum() or 1.0))


def _field(record: Any, name: str) -> Any:
    """``record[name]``; a ``ValueError`` if there is no such field."""
    there = isinstance(record, Mapping) and name in record
    got = sorted(record) if isinstance(record, Mapping) else record
    checks.require(there, "measurement", f"a spectrum with {name!r}", got, UNALTERED)
    return record[name]


def _listed(value: object) -> list[Any]:
    """The entries of a sequence or array; none for anything else, which the check of lengths then refuses."""
    return list(value) if isinstance(value, list | tuple | np.ndarray) else []


def _rows(name: str, value: object, nodes: int) -> FloatArray:
    """`value` as a (rows, nodes) array of numbers ≥ 0; those below zero by no more than rounding become zero."""
    rows = [_listed(row) for row in _listed(value)]
    lengths = [len(row) for row in rows]
    checks.require(bool(rows) and set(lengths) == {nodes}, name, f"rows of {nodes} numbers", lengths, UNALTERED)
    array = checks.real(name, rows, remedy="The network has diverged: measure earlier.")
    negative = bool((array < -1e-5 * np.abs(array).sum(axis=1, keepdims=True)).any())
    checks.require(not negative, name, "values ≥ 0", value, UNALTERED)
    return np.maximum(array, 0.0)
