"""The quadratic that explains measured learning curves, with intervals, and with what they leave open."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.fits.identification import FittedParameter, at_the_edge, fitted_parameters
from noisysgd.theory.fits.measured_curve import DivergedRun, MeasuredCurve, diverged_runs, measured_curves
from noisysgd.theory.fits.observations import Observations, observed
from noisysgd.theory.fits.power_laws import Reference
from noisysgd.theory.fits.search import ADDITIVE, BOTH, PROPORTIONAL, Found, Search
from noisysgd.theory.fits.uncertainty import correlation_time, spread
from noisysgd.theory.moments.losses import loss_curve
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.schedules.schedule import Schedule

LAWS = (ADDITIVE, PROPORTIONAL, BOTH)
LEAST_LOSSES = 8
"""Losses in all that a fit needs: one more than the numbers of the largest law."""
STARTS = 3
FAR_SHARE = 3.0
"""Logit of a share of proportional noise close to 1, from where the law of only that noise goes on to a mixture."""
SPACING, REACH = 0.3, 14.0
"""Spacing of the values of λ_max that are tried, in logarithms, and how much worse than the best one they may be."""
GROUPING = 0.1
"""How much of the scatter of the losses the error of grouped steps may be."""
FINEST = 0.003
"""Groups of steps are not made finer than this share, and exact curves are not matched beyond what it allows."""


@dataclass(frozen=True)
class LawEvidence:
    """How well one law of the noise explains the curves.

    `spread` is the typical relative deviation; `excess_criterion` is the Bayesian information criterion less that of
    the best law, so that 0 is the chosen one and 10 is strong evidence against. Residuals that hang together count as
    one in it.
    """

    noise: str
    numbers: int
    spread: float
    excess_criterion: float


@dataclass(frozen=True, eq=False)
class QuadraticFit:
    """What :func:`fit_quadratic` finds.

    Attributes
    ----------
    problem : NoisyQuadratic or LeastSquares
        The fitted problem: NoisyQuadratic for additive noise, else LeastSquares.
    cautious_problem : NoisyQuadratic or LeastSquares
        The same where the curves identify λ_max. Elsewhere one more mode, of next to no loss, makes learning rates
        beyond the highest stable one that was measured unstable: optima of this problem do not rest on an edge that
        nothing has shown. Use it for optimal rates and schedules.
    floor : float
        Loss that no training removes, to be added to the excess losses of `problem`.
    parameters : dict of FittedParameter
        ``floor``; ``excess``, what descent without noise leaves of the excess loss at the sum of effective learning
        rates ``reference.progress``, where it falls as its −``exponent``; ``noise``, the loss that noise keeps up at
        the temperature ``reference.temperature``, and ``noise_exponent``, its power of the curvature;
        ``largest_eigenvalue``; for mixed noise ``proportional_share``. Each with an interval at `level`, and whether
        the curves identify it.
    noise : str
        The law: "additive", "proportional" (to the excess loss) or "both".
    evidence : tuple of LawEvidence
        All laws that were compared, the chosen one first.
    residuals : tuple of arrays
        Measured minus fitted losses of each curve, at its steps.
    correlation : float
        How many neighbouring residuals count as one; well above 1 where the family does not have the curves' shape.
    curves : tuple of MeasuredCurve
        What was fitted.
    reference : Reference
        Where ``excess`` and ``noise`` are stated.
    level : float
        Confidence level of the intervals.
    """

    problem: Quadratic
    cautious_problem: Quadratic
    floor: float
    parameters: Mapping[str, FittedParameter]
    noise: str
    evidence: tuple[LawEvidence, ...]
    residuals: tuple[FloatArray, ...]
    correlation: float
    curves: tuple[MeasuredCurve, ...]
    reference: Reference
    level: float

    def loss_curve(
        self,
        schedule: Schedule,
        *,
        learning_rate: ArrayLike,
        batch_size: ArrayLike,
        momentum: ArrayLike = 0.0,
        at: ArrayLike,
    ) -> FloatArray:
        """Predicted losses, floor included: :func:`~noisysgd.theory.loss_curve` of the problem, plus the floor.

        Takes the arguments of that function, and gives arrays of the same shape; ``inf`` where training diverges.
        """
        excess = loss_curve(
            self.problem, schedule, learning_rate=learning_rate, batch_size=batch_size, momentum=momentum, at=at
        )
        return np.asarray(self.floor + excess)

    def __str__(self) -> str:
        lines = [f"{self.noise} noise, {len(self.curves)} curves, intervals at {self.level:.0%}"]
        for name, value in self.parameters.items():
            note = "" if value.identified else f"  not identified: {value.note}"
            lines.append(f"{name:20s} {value.estimate:10.4g}  [{value.low:.4g}, {value.high:.4g}]{note}")
        for law in self.evidence:
            lines.append(f"{law.noise:20s} spread {law.spread:.2e}, criterion +{law.excess_criterion:.1f}")
        return "\n".join(lines)

    __repr__ = __str__


def fit_quadratic(
    curves: MeasuredCurve | Iterable[MeasuredCurve],
    *,
    diverged: Iterable[DivergedRun | MeasuredCurve | Mapping[str, float]] = (),
    noise: str | None = None,
    level: float = 0.95,
) -> QuadraticFit:
    r"""The noisy quadratic whose expected losses come closest to measured learning curves.

    The excess loss over a floor is that of a quadratic with power laws up to a largest curvature λ_max: A λ^α of loss
    per e-fold of curvature at the start, and C λ^β of noise. With S the sum of the learning rates, the loss is

        L(t) = L₀ + ∫ A λ^α e^{−2λS(t)} dλ/λ + γ ∫ C λ^β Σ_τ ε_τ² e^{−2λ(S(t)−S(τ))} dλ/λ

    for small learning rates; what is fitted are the exact moments of the discrete steps, with momentum where there is
    some. All curves are fitted at once, whatever their schedules, batch sizes (γ = 1/B) and momenta. Relative
    deviations are minimised in Huber's sense, so that spikes of the loss count little.

    The noise may be additive, proportional to the excess loss, or a mixture. The curves choose between these laws by
    the Bayesian information criterion, in which residuals that hang together count as one.

    Parameters
    ----------
    curves : MeasuredCurve or several
        At least 8 losses in all, of which at least one curve descends.
    diverged : sequence of DivergedRun, optional
        Runs whose loss grew without bound; mappings with ``learning_rate``, ``batch_size`` and ``momentum`` are taken
        too, and curves. They are required to be unstable, as the stable ones are required to be stable: together they
        bracket λ_max.
    noise : {"additive", "proportional", "both"}, optional
        The law of the noise; by default the curves choose.
    level : float
        Confidence level of the intervals, between 0.5 and 1.

    Returns
    -------
    QuadraticFit

    Raises
    ------
    ValueError
        For too few losses, curves none of which descends, or runs that diverged where others were stable.

    Notes
    -----
    Intervals hold their level for independent errors, and are widened by the correlation time of residuals that hang
    together. They come from the curvature of the misfit at fixed λ_max, in logarithms of positive numbers, integrated
    over λ_max, along which the misfit has long valleys and several minima.

    λ_max counts as identified only if runs came within a factor of two of the edge of stability and no other value
    explains the curves nearly as well, or if stable and diverged runs bracket it. Otherwise the problem still needs a
    largest curvature: it is where the power laws have to end to explain the curves, and no measurement of the edge.

    A learning curve of 24 000 steps with a rate of its own for each takes about a millisecond per evaluation: steps are
    grouped, more finely until the error is small beside the scatter of the losses.

    Examples
    --------
    >>> import numpy as np
    >>> from noisysgd import theory
    >>> eigenvalues = np.geomspace(1e-4, 1.0, 30)
    >>> problem = theory.NoisyQuadratic(eigenvalues, noise=0.01, initial_variance=eigenvalues**-0.5)
    >>> at = np.arange(50, 2001, 50)
    >>> runs = [theory.constant(2000), theory.piecewise([1000, 1000], [1.0, 0.1])]
    >>> settings = {"learning_rate": 0.4, "batch_size": 16}
    >>> losses = [0.5 + theory.loss_curve(problem, run, at=at, **settings) for run in runs]
    >>> fit = fit_quadratic([MeasuredCurve(at, loss, schedule=run, **settings) for run, loss in zip(runs, losses)])
    >>> fit.noise, round(fit.floor, 1)
    ('additive', 0.5)
    """
    found = measured_curves(curves)
    blown = diverged_runs(diverged)
    laws: tuple[str, ...] = LAWS if noise is None else (checks.one_of("noise", noise, LAWS),)
    level = checks.scalar("level", level)
    checks.require(0.5 <= level < 1, "level", "a confidence level between 0.5 and 1", level, "0.95 is usual.")
    search = _search(found, blown)
    laws = tuple(law for law in laws if law != ADDITIVE or search.smallest_edge < search.largest_edge)
    remedy = "Divergence below stable rates needs noise that grows with the loss."
    checks.require(len(laws) > 0, "noise", "a law under which all these runs diverge", noise, remedy)
    fits, search = _fits(search, laws)
    best, time, evidence = _chosen(fits, search)
    # The misfit may have several minima along λ_max, and long valleys.
    minima = search.profile(best, SPACING, REACH * time)
    around = spread(minima, time)
    if at_the_edge(search, best):
        best = minima[around.middle]
    values = search.laws(best.law, best.point)
    floor = float(best.point[0])
    coarse = search.runs[0].coarse
    whole = [Observations(curve, curve.steps, curve.losses, np.ones(curve.steps.size), coarse) for curve in found]
    residuals = [run.losses - floor - run.excess_losses(values, search.reference) for run in whole]
    parameters = fitted_parameters(search, best, around, time, level)
    # Beyond the last stable rate a run of that rate would have shown the edge, for whatever momentum.
    steepest = 0.0 if parameters["largest_eigenvalue"].identified else search.largest_edge
    return QuadraticFit(
        problem=values.problem(search.reference),
        cautious_problem=values.problem(search.reference, steepest),
        floor=floor,
        parameters=parameters,
        noise=best.law,
        evidence=evidence,
        residuals=tuple(residuals),
        correlation=time,
        curves=found,
        reference=search.reference,
        level=level,
    )


def _check_descent(curves: tuple[MeasuredCurve, ...]) -> None:
    """Raise for data that no fit can come from."""
    count = sum(curve.steps.size for curve in curves)
    expected = f"at least {LEAST_LOSSES} losses in all"
    checks.require(count >= LEAST_LOSSES, "curves", expected, f"{count}", "Measure more, or more often.")
    thirds = [(curve.losses, max(curve.losses.size // 3, 1)) for curve in curves if curve.losses.size > 1]
    falls = [float(loss[:third].mean() - loss[-third:].mean()) for loss, third in thirds]
    remedy = "Lower the learning rate, or measure from earlier on; a quadratic is fitted to a descent."
    got = f"falls of {', '.join(f'{fall:.3g}' for fall in falls[:6])}"
    checks.require(any(fall > 0 for fall in falls), "curves", "a loss that falls in at least one of them", got, remedy)


def _check_diverged(diverged: tuple[DivergedRun, ...], runs: tuple[Observations, ...]) -> None:
    """Raise where a run diverged at a learning rate at which one with no less noise was stable."""
    for run in diverged:
        for stable in runs:
            comparable = run.momentum == stable.curve.momentum and run.batch_size >= stable.curve.batch_size
            sound = not comparable or run.learning_rate > stable.held_rate
            got = f"one that diverged at {run.learning_rate:g} and one that was stable at {stable.held_rate:g}"
            remedy = "Momentum and batch do not explain it: one of the two is not what it is called."
            checks.require(sound, "diverged", "higher learning rates than those of stable runs", got, remedy)


def _search(curves: tuple[MeasuredCurve, ...], diverged: tuple[DivergedRun, ...]) -> Search:
    """The search, with its references and with the bounds that stability sets."""
    _check_descent(curves)
    runs = observed(curves)
    progress = np.concatenate([run.progress[run.progress > 0] for run in runs])
    remedy = "Measure losses after steps with a learning rate > 0."
    checks.require(progress.size > 0, "curves", "steps that move", "no learning rate > 0", remedy)
    losses = np.concatenate([run.losses for run in runs])
    span = float(losses.max() - losses.min())
    _check_diverged(diverged, runs)
    smallest = max([2.0 * (1.0 + run.momentum) / run.learning_rate for run in diverged], default=0.0)
    largest = min(2.0 * (1.0 + run.curve.momentum) / run.held_rate for run in runs)
    reference = Reference(
        progress=float(np.exp(np.median(np.log(progress)))),
        temperature=max(run.temperature for run in runs) or 1.0,
        loss=float(np.median(losses) - np.quantile(losses, 0.1)) or span,
        furthest=float(progress.max()),
    )
    # A single loss may by chance lie below the floor.
    return Search(runs, diverged, reference, float(losses.max()), smallest, largest)


def _fits(search: Search, laws: tuple[str, ...]) -> tuple[list[Found], Search]:
    """The best member under each law, on groups of steps so fine that their error is small beside the scatter."""
    starts = search.starts(STARTS)
    additive = search.minimum(ADDITIVE, starts) if ADDITIVE in laws else None
    near = [starts[0] if additive is None else additive.point]
    fits = [additive] if additive else []
    for law in LAWS[1:]:
        if law in laws:
            fits.append(search.minimum(law, [each for point in near for each in search.starting(law, point)]))
            near.append(np.append(fits[-1].point, FAR_SHARE))
    while True:
        best = min(fits, key=lambda fit: fit.spread)
        finer = replace(search, runs=tuple(replace(run, coarse=run.coarse / 4) for run in search.runs))
        error = np.abs(finer.residuals(best.law, best.point) - search.residuals(best.law, best.point)).max()
        if error <= GROUPING * best.scale or search.runs[0].coarse <= FINEST:
            return fits, search
        search = finer
        fits = [search.minimum(fit.law, [fit.point]) for fit in fits]


def _chosen(fits: list[Found], search: Search) -> tuple[Found, float, tuple[LawEvidence, ...]]:
    """The law with the lowest criterion, the correlation time of residuals, and the evidence for all laws."""
    sizes = np.array([run.steps.size for run in search.runs])
    closest = min(fits, key=lambda fit: fit.spread)
    independent = sizes.sum() / correlation_time(closest.residuals[: sizes.sum()], sizes, closest.point.size)
    criteria = [2 * independent * np.log(fit.spread) + fit.point.size * np.log(independent) for fit in fits]
    order = np.argsort(criteria, kind="stable")
    evidence = [
        LawEvidence(
            fits[k].law, fits[k].point.size, fits[k].spread / search.weight, float(criteria[k] - criteria[order[0]])
        )
        for k in order
    ]
    best = fits[order[0]]
    return best, correlation_time(best.residuals[: sizes.sum()], sizes, best.point.size), tuple(evidence)
