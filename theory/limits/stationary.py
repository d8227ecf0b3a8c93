"""Stationary states of SGD, heavy ball and their SDE limit at a constant learning rate.

They depend on the optimizer through three numbers: the temperature T = γε/(1−m), with γ the noise factor (1/B if
examples never run out), the step length δ = ε/(1+m) and, between modes whose noise is correlated, the retardation
ρ = εm/((1−m)²(1+m)). The SDE of the paper's eq. 3 has δ = ρ = 0.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.limits.nesterov import additive_covariance, gains
from noisysgd.theory.limits.nesterov import shares as nesterov_shares
from noisysgd.theory.limits.stability import edge, feedback
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic, natural_units

Problem = NoisyQuadratic | LeastSquares

ROWS = 64
"""Rows of a covariance that are computed at once."""


class FluctuationDissipation(NamedTuple):
    """The two sides of a relation that holds where the state is stationary."""

    left: FloatArray
    right: FloatArray


@ignoring_underflow
def stationary_covariance(
    problem: Problem,
    *,
    learning_rate: ArrayLike,
    batch_size: ArrayLike,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
) -> FloatArray:
    r"""Covariance Σ of θ to which SGD or heavy ball tends at a constant learning rate.

    *Additive noise* (Liu, Ziyin & Ueda, arXiv 2012.03636), where F and H need not commute:

        (1−m)(HΣ+ΣH) − ε(1+m²)/(1−m²) HΣH + εm/(1−m²) (H²Σ+ΣH²) = γεF,

    which for SGD is HΣ + ΣH − εHΣH = γεF. A single mode has Σ = γεF(1+m) / [λ(1−m)(2(1+m) − ελ)].

    *Least squares*: Σ is diagonal, Σᵢᵢ = T(L + σ²) / (2 − λᵢ(T(κ−2) + ε/(1+m))) with T = γε/(1−m). L, twice the
    stationary loss, follows from L = Σ wᵢ λᵢ Σᵢᵢ.

    Flat modes have no stationary state of their own. One that has noise diffuses, and its variance is ``inf``, as is
    (with its sign) the covariance of two whose noise is correlated; one without noise keeps its initial variance.
    Covariances of flat with curved modes are finite. At ε = 0 curved modes have variance 0, the limit for ε → 0.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
        D modes.
    learning_rate, batch_size, momentum : array_like
        Broadcast against each other.
    nesterov : bool
        Whether θ takes Nesterov's step, whose stationary states are in :mod:`noisysgd.theory.limits.nesterov`.

    Returns
    -------
    array of shape (broadcast shape..., D, D)
        At and beyond the critical learning rate there is no stationary state, and all entries are ``inf``.

    Raises
    ------
    ValueError
        For impossible learning rates, batch sizes or momenta, and shapes that do not broadcast.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0, 0.5], noise=[[1.0, 0.5], [0.5, 1.0]])
    >>> stationary_covariance(problem, learning_rate=1.0, batch_size=2)
    array([[0.5       , 0.25      ],
           [0.25      , 0.66666667]])
    """
    rate, factor, inertia = _settings(problem, learning_rate, batch_size, momentum)
    # The closed forms below have values beyond the critical learning rate too, but no stationary state is there.
    checks.boolean("nesterov", nesterov)
    stable = rate < edge(problem, factor, inertia, nesterov=nesterov)
    temperature, step_length = factor * rate / (1.0 - inertia), rate / (1.0 + inertia)
    if isinstance(problem, LeastSquares):
        shares = _shares(problem, rate, factor, inertia, nesterov=nesterov)
        covariance = _diagonal(_least_squares_variances(problem, shares))
        stable = stable & np.isfinite(covariance).all(axis=(-1, -2))
    elif nesterov:
        natural, unit = natural_units(problem)
        noise = natural.noise if natural.noise.ndim == 2 else np.diag(natural.noise)
        push = factor[..., None, None] * noise
        start = natural.initial_variance
        covariance = additive_covariance(natural.eigenvalues, push, start, rate * unit, inertia) / unit
    else:
        retardation = rate * inertia / ((1.0 - inertia) ** 2 * (1.0 + inertia))
        covariance = _additive_covariance(problem, temperature, step_length, retardation)
    covariance[~stable] = np.inf
    return covariance


@ignoring_underflow
def stationary_loss(
    problem: Problem,
    *,
    learning_rate: ArrayLike,
    batch_size: ArrayLike,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
) -> FloatArray:
    r"""Expected loss ½ Σ wᵢ λᵢ Σᵢᵢ of the stationary state.

    *Additive noise*: ½ Σ wᵢ T Fᵢᵢ / (2 − ελᵢ/(1+m)), T = γε/(1−m). *Least squares*: ½ σ² R/(1 − R), where R is the
    feedback of :func:`~noisysgd.theory.critical_learning_rate`: it diverges at the critical learning rate, and below
    that is 0 without label noise. At small ε the loss is ¼ T tr F, with F = σ²Λ for least squares.

    Parameters
    ----------
    problem, learning_rate, batch_size, momentum, nesterov
        As in :func:`stationary_covariance`.

    Returns
    -------
    array of the broadcast shape
        ``inf`` at and beyond the critical learning rate.

    Raises
    ------
    ValueError
        As :func:`stationary_covariance`.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0], noise=1.0)
    >>> stationary_loss(problem, learning_rate=[0.0, 1.0, 2.0], batch_size=4)
    array([0.   , 0.125,   inf])
    """
    rate, factor, inertia = _settings(problem, learning_rate, batch_size, momentum)
    checks.boolean("nesterov", nesterov)
    return 0.5 * _weighted_sum(problem, _energies(problem, rate, factor, inertia, nesterov=nesterov))


@ignoring_underflow
def fluctuation_dissipation(
    problem: Problem, *, learning_rate: ArrayLike, batch_size: ArrayLike, covariance: ArrayLike | None = None
) -> FluctuationDissipation:
    r"""Both sides of Yaida's relation 2⟨θ·g⟩ = ε⟨|ĝ|²⟩, which stationary SGD obeys (Yaida 2018, arXiv 1810.00004).

    One step changes E |θ|² by ε(right − left), so that SGD still approaches the minimum where left > right. On a
    quadratic

        left = 2 tr HΣ,    right = ε (tr HΣH + γ tr F),    Σ = E θθᵀ.

    Parameters
    ----------
    problem, learning_rate, batch_size
        As in :func:`stationary_covariance`.
    covariance : (..., D, D) array_like, optional
        Second moments Σ = E θθᵀ of the state in question, of shape (D, D) or with leading axes that broadcast against
        the settings. By default those of the stationary state, in which the two sides differ only by the diffusion of
        flat modes that have noise.

    Returns
    -------
    FluctuationDissipation
        A named tuple (left, right) of arrays of the broadcast shape; ``inf`` where Σ is.

    Raises
    ------
    ValueError
        For impossible settings, or a covariance of another shape or with NaN.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0, 0.5], noise=[1.0, 0.5])
    >>> left, right = fluctuation_dissipation(problem, learning_rate=0.5, batch_size=8)
    >>> left.round(6), right.round(6)
    (np.float64(0.119048), np.float64(0.119048))
    >>> left, right = fluctuation_dissipation(problem, learning_rate=0.5, batch_size=8, covariance=np.eye(2))
    >>> left > right
    np.True_
    """
    rate, factor, inertia = _settings(problem, learning_rate, batch_size, 0.0)
    if covariance is not None:
        state = checks.real("covariance", covariance)
        shape = f"shape (..., {problem.dim}, {problem.dim})"
        fits = state.shape[-2:] == (problem.dim, problem.dim)
        checks.require(fits, "covariance", shape, state.shape, "Give Σ = E θθᵀ in the eigenbasis.")
        variances = np.diagonal(state, axis1=-2, axis2=-1)
    problem, unit = natural_units(problem)
    rate = rate * unit
    if covariance is None:
        energies = _energies(problem, rate, factor, inertia)
    else:
        # Flat modes contribute 0 even where their variance is infinite.
        curvatures = problem.eigenvalues
        energies = np.multiply(curvatures, unit * variances, out=np.zeros(variances.shape), where=curvatures > 0)
        rate, factor, _ = checks.broadcast(learning_rate=rate, noise_factor=factor, covariance=energies[..., 0])
    twice_loss = _weighted_sum(problem, energies)
    squared_gradient = _weighted_sum(problem, problem.eigenvalues * energies)
    with np.errstate(invalid="ignore"):  # differences and multiples of ∞, where the answer is ∞
        noise = factor * _noise_trace(problem, twice_loss, squared_gradient)
        right = np.where(np.isinf(twice_loss), np.inf, rate * (squared_gradient + noise))
    return FluctuationDissipation(*np.broadcast_arrays(2.0 * twice_loss, right))


@ignoring_underflow
def sde_stationary_covariance(problem: Problem, *, temperature: ArrayLike) -> FloatArray:
    r"""Covariance of the stationary state of the SDE of eq. 3: HΣ + ΣH = T F (Mandt, Hoffman & Blei 2017).

    This is the limit of :func:`stationary_covariance` for ε → 0 at a fixed temperature. For least squares F depends on
    Σ, and Σᵢᵢ = T(L + σ²)/(2 − Tλᵢ(κ−2)) with L = Σ wᵢ λᵢ Σᵢᵢ. At κ = 2 it is the stationary state of homogenised SGD,
    which exists for T tr H < 2 (Paquette et al. 2021).

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
        D modes; flat ones as in :func:`stationary_covariance`.
    temperature : array_like
        T = ε/(B(1−m)), see :func:`~noisysgd.theory.temperature`; for a data set of known size multiply
        ``problem.noise_factor(batch_size)`` by ε/(1−m) instead.

    Returns
    -------
    array of shape (temperature's shape..., D, D)
        All entries ``inf`` where noise that grows with the loss leaves no stationary state.

    Raises
    ------
    ValueError
        For a temperature that is negative, infinite or NaN.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0, 0.5], noise=[[1.0, 0.5], [0.5, 1.0]])
    >>> sde_stationary_covariance(problem, temperature=theory.temperature(0.3, 1)).round(3)
    array([[0.15, 0.1 ],
           [0.1 , 0.3 ]])
    """
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.power_law or theory.LeastSquares.")
    heat = checks.at_least("temperature", temperature, 0.0, remedy="T = ε/(B(1−m)) is finite and not negative.")
    none = np.zeros_like(heat)
    if isinstance(problem, LeastSquares):
        covariance = _diagonal(_least_squares_variances(problem, feedback(problem, heat, none)))
        covariance[~np.isfinite(covariance).all(axis=(-1, -2))] = np.inf
        return covariance
    return _additive_covariance(problem, heat, none, none)


def _settings(
    problem: Problem, learning_rate: ArrayLike, batch_size: ArrayLike, momentum: ArrayLike
) -> list[FloatArray]:
    """Learning rates, noise factors and momenta, checked and of one shape."""
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.power_law or theory.LeastSquares.")
    rate, size, inertia = checks.broadcast(
        learning_rate=checks.learning_rate(learning_rate),
        batch_size=checks.batch_size(batch_size, problem.dataset_size),
        momentum=checks.momentum(momentum),
    )
    return [rate, problem.noise_factor(size), inertia]


def _energies(
    problem: Problem, rate: FloatArray, noise_factor: FloatArray, momentum: FloatArray, *, nesterov: bool = False
) -> FloatArray:
    """λᵢ Σᵢᵢ of the stationary state, (..., D): zero for flat modes; ``inf`` for the others without such a state."""
    if isinstance(problem, LeastSquares):
        energies = _least_squares_energies(problem, _shares(problem, rate, noise_factor, momentum, nesterov=nesterov))
    elif nesterov:
        with np.errstate(invalid="ignore"):
            energies = gains(problem, rate, momentum) * noise_factor[..., None] * problem.noise_diagonal
    else:
        temperature, step_length = noise_factor * rate / (1.0 - momentum), rate / (1.0 + momentum)
        with np.errstate(divide="ignore", invalid="ignore"):
            pull = 2.0 - problem.eigenvalues * step_length[..., None]
            energies = temperature[..., None] * problem.noise_diagonal / pull
    # Flat modes have no energy, however far they diffuse.
    stable = rate < edge(problem, noise_factor, momentum, nesterov=nesterov)
    return np.where(problem.eigenvalues > 0, np.where(stable[..., None], energies, np.inf), 0.0)


def _shares(
    problem: LeastSquares, rate: FloatArray, noise_factor: FloatArray, momentum: FloatArray, *, nesterov: bool
) -> FloatArray:
    """Each mode's share of the feedback R, (..., D)."""
    if nesterov:
        return nesterov_shares(problem, rate, noise_factor, momentum)
    return feedback(problem, noise_factor * rate / (1.0 - momentum), rate / (1.0 + momentum))


def _least_squares_energies(problem: LeastSquares, shares: FloatArray) -> FloatArray:
    """λᵢ Σᵢᵢ of least squares, (..., D)."""
    # λᵢ Σᵢᵢ = shareᵢ (L + σ²), whose weighted sum is L = R(L + σ²); hence L + σ² = σ²/(1 − R), with R `returned`.
    returned = _weighted_sum(problem, shares)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(returned < 1.0, shares * (problem.label_noise / (1.0 - returned)), np.inf)


def _least_squares_variances(problem: LeastSquares, shares: FloatArray) -> FloatArray:
    """Σᵢᵢ of least squares, (..., D); flat modes keep their initial variance."""
    energies = _least_squares_energies(problem, shares)
    still = np.broadcast_to(problem.initial_variance, energies.shape).copy()
    return np.divide(energies, problem.eigenvalues, where=problem.eigenvalues > 0, out=still)


def _additive_covariance(
    problem: NoisyQuadratic, temperature: FloatArray, step_length: FloatArray, retardation: FloatArray
) -> FloatArray:
    """The solution of Liu, Ziyin & Ueda's equation, entry by entry in the eigenbasis.

    Divided by (1−m) it reads [½ λᵢ(2 − δλⱼ) + ½ λⱼ(2 − δλᵢ) + ρ(λᵢ − λⱼ)²] Σᵢⱼ = T Fᵢⱼ, a form in which all terms in
    brackets are positive below the critical learning rate, so that nothing cancels.
    """
    if problem.noise.ndim == 1:  # modes without correlated noise stay independent
        curvature, still = problem.eigenvalues, problem.initial_variance
        step = step_length[..., None]
        pull = curvature * (2.0 - step * curvature)
        return _diagonal(_balance(temperature[..., None] * problem.noise, pull, curvature == 0, still))
    covariance = np.empty((*temperature.shape, problem.dim, problem.dim))
    for place in np.ndindex(temperature.shape):
        for start in range(0, problem.dim, ROWS):  # so that the result is all that needs much memory
            rows = slice(start, start + ROWS)
            row, column = problem.eigenvalues[rows, None], problem.eigenvalues
            pull = 0.5 * (row * (2.0 - step_length[place] * column) + column * (2.0 - step_length[place] * row))
            pull += retardation[place] * (row - column) ** 2
            still = np.zeros(pull.shape)
            np.fill_diagonal(still[:, rows], problem.initial_variance[rows])
            push, flat = temperature[place] * problem.noise[rows], (row == 0) & (column == 0)
            covariance[(*place, rows)] = _balance(push, pull, flat, still)
    return covariance


def _balance(push: FloatArray, pull: FloatArray, flat: npt.NDArray[np.bool_], still: FloatArray) -> FloatArray:
    """Moments at which `pull` on them balances `push`.

    Nothing pulls what is flat back: it diffuses where it has noise, and else stays `still`, where it starts.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        diffusing = np.where(push == 0.0, still, np.copysign(np.inf, push))
        return np.where(flat, diffusing, push / pull)


def _noise_trace(problem: Problem, twice_loss: FloatArray, squared_gradient: FloatArray) -> FloatArray:
    """tr F in a state with tr HΣ = `twice_loss` and tr HΣH = `squared_gradient`."""
    if isinstance(problem, LeastSquares):
        trace = _weighted_sum(problem, problem.eigenvalues)
        return trace * (twice_loss + problem.label_noise) + (problem.kurtosis - 2.0) * squared_gradient
    return _weighted_sum(problem, problem.noise_diagonal)


def _weighted_sum(problem: Problem, values: FloatArray) -> FloatArray:
    """Sum over all modes of `values`, (..., D), each counted as often as its weight says."""
    return np.asarray((problem.weights * values).sum(axis=-1))


def _diagonal(values: FloatArray) -> FloatArray:
    """Diagonal matrices, (..., D, D), of `values`, (..., D)."""
    matrices, modes = np.zeros((*values.shape, values.shape[-1])), np.arange(values.shape[-1])
    matrices[..., modes, modes] = values
    return matrices
