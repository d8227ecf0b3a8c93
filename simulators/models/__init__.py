"""Models made of examples, from which minibatches are drawn: finite least squares, the diagonal network."""

from noisysgd.simulators.models.diagonal_network import DiagonalNetwork, sparse_regression
from noisysgd.simulators.models.finite_least_squares import FiniteLeastSquares

__all__ = [
    "DiagonalNetwork",
    "FiniteLeastSquares",
    "sparse_regression",
]
