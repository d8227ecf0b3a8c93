"""Few nodes for many eigenvalues: Gauss quadrature of a spectrum, with an error bound that is computed.

The expected loss is Σ a_i g(λ_i) + Σ b_i h(λ_i), where g and h are analytic in λ and the masses a_i = ½ w λ E θ₀² and
b_i = ½ w λ F_i are not negative. Eigenvalues are grouped in bins of u = log λ. A bin with few of them keeps them; in
any other the measure Σ mass δ(u_i) is replaced by its n-point Gauss rule, whose nodes lie inside the bin, whose weights
are positive and which integrates polynomials of degree 2n − 1 exactly (Golub & Meurant 2010).

The bound. Let |f| ≤ M in the Bernstein ellipse ϱ of the bin, the image under u = centre + half-width · (z + 1/z)/2 of
|z| < ϱ. Then the Chebyshev coefficients of f obey |c_j| ≤ 2 M ϱ^−j (Trefethen 2019, theorem 8.1), and so

    |Σ mass f − Σ weight f(node)| ≤ M · K(ϱ),   K(ϱ) = 2 Σ_{j<J} ϱ^−j |μ_j − ν_j| + 4 · mass · ϱ^−J / (1 − 1/ϱ)

with the Chebyshev moments μ_j of the bin and ν_j of its rule. Both are *evaluated*, so the bound holds for whatever
rule was found, rounding included; nothing rests on how it was found. M depends on the optimizer: ``quadrature_bounds``
for first passages, ``compression`` for any schedule of SGD.
"""

from dataclasses import dataclass

import numpy as np

from noisysgd.theory.common.arrays import FloatArray

BIN = np.log(4.0)
"""Largest width of a bin in log λ."""
NODES = 11
"""Nodes in a bin without oscillations. Errors are then about 1e-13 for (1 − ελ)^2t, whose modulus is at most 1 for
complex λ as well: up to |arg λ| of nearly π/2 while ε|λ| is small."""
MORE_NODES = 24
"""Most nodes that a bin gets in addition, to resolve oscillations; where they need more, the bin is made narrower."""
ELLIPSES = np.array([4.2, 3.0, 2.2, 1.7, 1.4, 1.25])
"""Sizes ϱ of the Bernstein ellipses among which the bound chooses; (ϱ + 1/ϱ)/2 is the longer semi-axis."""
ARCS = 8
"""Arcs into which half an ellipse is cut; for the bound each is enclosed in an annular sector."""


@dataclass(frozen=True, eq=False)
class SpectralRule:
    """Nodes and weights that stand for eigenvalues and masses.

    Attributes
    ----------
    nodes, weights : (n,) array
        Descending λ > 0; weights > 0.
    amplification : (K, E) array
        K(ϱ) of each compressed bin and ellipse.
    boundary : (K, E, ARCS, 4) array
        Annular sectors that cover the upper half of each ellipse's boundary: smallest and largest |λ|, then cosine of
        the smallest and of the largest arg λ, which stays below π/2.
    """

    nodes: FloatArray
    weights: FloatArray
    amplification: FloatArray
    boundary: FloatArray

    @property
    def exact(self) -> bool:
        """Whether nothing was compressed."""
        return self.amplification.size == 0


def spectral_rule(
    eigenvalues: FloatArray,
    masses: FloatArray,
    oscillations: float = 0.0,
    *,
    count: int = NODES,
    above: float = np.inf,
) -> SpectralRule:
    """A rule for Σ masses f(eigenvalues), for functions f that oscillate by up to so many radians at the largest λ.

    Heavy ball turns a mode by about √(ελ) in a step, so that t steps need `oscillations` = t√(ελ_max), and the phase of
    the other modes falls as √λ. Modes without mass or curvature are dropped, equal eigenvalues merged.

    Parameters
    ----------
    eigenvalues, masses : (D,) array
        λ ≥ 0 and masses ≥ 0.
    oscillations : float
        Phase to resolve, in radians; ``np.inf`` keeps every eigenvalue.
    count : int
        Nodes in a bin without oscillations.
    above : float
        Eigenvalues above this are kept.

    Returns
    -------
    SpectralRule

    Examples
    --------
    >>> eigenvalues = 1 / np.arange(1, 10_001)
    >>> rule = spectral_rule(eigenvalues, eigenvalues)
    >>> rule.nodes.size
    70
    >>> bool(abs(np.sum(rule.weights * (1 - rule.nodes) ** 50) - np.sum(eigenvalues * (1 - eigenvalues) ** 50)) < 1e-12)
    True
    """
    carrying = (eigenvalues > 0) & (masses > 0)
    falling, inverse = np.unique(-eigenvalues[carrying], return_inverse=True)
    values: FloatArray = -falling
    sums: FloatArray = np.bincount(inverse, weights=masses[carrying], minlength=values.size).astype(np.float64)
    nodes: list[FloatArray] = [np.empty(0)]
    weights: list[FloatArray] = [np.empty(0)]
    amplification: list[FloatArray] = []
    boundary: list[FloatArray] = []
    start = values.size if oscillations == np.inf else int(np.count_nonzero(values > above))
    nodes.append(values[:start])
    weights.append(sums[:start])
    while start < values.size:
        # The next bin begins at λ = top. The phase there says how many nodes a bin of full width needs in addition, or
        # into how many parts it has to be cut.
        top = values[start]
        more = 0.35 * oscillations * np.sqrt(top / values[0])
        parts = max(np.ceil(more / MORE_NODES), 1.0)
        most = count + int(np.ceil(more / parts))
        stop = max(int(np.searchsorted(-values, -top * np.exp(-BIN / parts), side="right")), start + 1)
        part = slice(start, stop)
        start = stop
        # No rule pays for a bin of at most `most` eigenvalues: it keeps them, and adds no error.
        rule = _gauss(values[part], sums[part], most) if stop - part.start > most else None
        nodes.append(values[part] if rule is None else rule[0])
        weights.append(sums[part] if rule is None else rule[1])
        if rule is not None:
            amplification.append(rule[2])
            boundary.append(_boundary(values[part]))
    return SpectralRule(
        np.concatenate(nodes),
        np.concatenate(weights),
        np.array(amplification).reshape(-1, ELLIPSES.size),
        np.array(boundary).reshape(-1, ELLIPSES.size, ARCS, 4),
    )


def _gauss(eigenvalues: FloatArray, masses: FloatArray, count: int) -> tuple[FloatArray, FloatArray, FloatArray] | None:
    """Nodes, weights and K(ϱ) of the `count`-point Gauss rule in log λ; None if rounding defeats it.

    Modified Chebyshev algorithm (Wheeler 1974; Gautschi 2004, section 2.1.7): recurrence coefficients from Chebyshev
    moments, then nodes and weights from the eigenvectors of the Jacobi matrix, which makes the weights positive.
    """
    from scipy.linalg import eigh_tridiagonal

    logs = np.log(eigenvalues)
    centre, half = (logs[0] + logs[-1]) / 2, (logs[0] - logs[-1]) / 2
    known = 2 * count + 8  # moments beyond the 2n that a rule needs, so that the tail of the bound is small
    moments = _chebyshev_moments((logs - centre) / half, masses, known)
    # T_j has leading coefficient 2^(j−1); the recurrence is that of monic polynomials, and so are its coefficients.
    monic = moments[: 2 * count] * np.append(1.0, 2.0 ** (1.0 - np.arange(1, 2 * count)))
    norms = np.concatenate([[0.0, 0.5], np.full(2 * count, 0.25)])
    diagonal, beta = np.zeros(count), np.zeros(count)
    before, row = np.zeros(2 * count), monic
    diagonal[0], beta[0] = monic[1] / monic[0], monic[0]
    # Row k holds the mixed moments Σ mass π_k T_j of the orthogonal polynomials π_k that are sought; the three-term
    # recurrences of both families give each row from the two before it.
    for k in range(1, count):
        new = np.zeros(2 * count)
        j = np.arange(k, 2 * count - k)
        new[j] = row[j + 1] - diagonal[k - 1] * row[j] - beta[k - 1] * before[j] + norms[j] * row[j - 1]
        if not new[k] > 0 or not row[k - 1] > 0:  # squared norms of polynomials: not positive by rounding alone
            return None
        diagonal[k] = new[k + 1] / new[k] - row[k] / row[k - 1]
        beta[k] = new[k] / row[k - 1]
        before, row = row, new
    # Nodes are eigenvalues of the Jacobi matrix, weights the squared first entries of its eigenvectors.
    places, vectors = eigh_tridiagonal(diagonal, np.sqrt(beta[1:]))
    weights = beta[0] * vectors[0] ** 2
    if not (np.abs(places) <= 1.0).all():
        return None
    # K(ϱ) of the rule as it is, from the moments that it really has.
    defects = np.abs(moments - _chebyshev_moments(places, weights, known))
    powers = ELLIPSES[:, None] ** -np.arange(known)
    amplification = 2.0 * powers @ defects + 4.0 * beta[0] * ELLIPSES**-known / (1.0 - 1.0 / ELLIPSES)
    return np.exp(centre + half * places[::-1]), weights[::-1], amplification


def _chebyshev_moments(places: FloatArray, masses: FloatArray, count: int) -> FloatArray:
    """Σ masses T_j(places) for j < count, by the recurrence T_{j+1} = 2x T_j − T_{j−1}."""
    moments = np.empty(count)
    before, now = masses * places, masses.copy()  # T_−1 = T_1
    for j in range(count):
        moments[j] = now.sum()
        before, now = now, 2.0 * places * now - before
    return moments


def _boundary(eigenvalues: FloatArray) -> FloatArray:
    """Annular sectors that cover the upper half of the boundary of every ellipse over a bin: (E, ARCS, 4).

    The lower half is its mirror image, on which functions that are real for real λ have the same modulus.
    """
    ends = np.log(eigenvalues[[0, -1]])
    centre, half = ends.sum() / 2, (ends[0] - ends[1]) / 2
    corners = np.linspace(0.0, np.pi, ARCS + 1)
    across, along = (ELLIPSES - 1 / ELLIPSES) / 2, (ELLIPSES + 1 / ELLIPSES) / 2
    real = centre + half * np.outer(along, np.cos(corners))
    imaginary = half * np.outer(across, np.sin(corners))
    imaginary[:, -1] = 0.0  # which sin π is not
    # With λ = e^u the real part of u gives |λ|, falling along the arc, and the imaginary part is arg λ.
    least, most = np.minimum(imaginary[:, :-1], imaginary[:, 1:]), np.maximum(imaginary[:, :-1], imaginary[:, 1:])
    return np.stack([np.exp(real[:, 1:]), np.exp(real[:, :-1]), np.cos(least), np.cos(most)], axis=-1)
