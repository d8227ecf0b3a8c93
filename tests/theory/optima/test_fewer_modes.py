"""Searches on compressed spectra find what searches on the spectrum itself find."""

import numpy as np
import pytest

from noisysgd import theory
from noisysgd.theory.optima import fewer_modes


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("batch_size", [1, 64, 4096])
@pytest.mark.parametrize("exponent", [1.0, 1.5])
def test_the_best_rate_and_its_loss_are_those_of_the_whole_spectrum(monkeypatch, exponent, batch_size, momentum):
    eigenvalues = np.arange(1, 401.0) ** -exponent
    problem = theory.NoisyQuadratic(eigenvalues, np.sqrt(eigenvalues))
    budget = theory.EpochBudget(epochs=3, dataset_size=50_000)
    run = {"batch_size": batch_size, "momentum": momentum}
    assert fewer_modes._levels(problem)
    short = theory.optimal_learning_rate(problem, budget, **run)
    monkeypatch.setattr(fewer_modes, "LONG", 10**9)
    full = theory.optimal_learning_rate(problem, budget, **run)
    schedule = theory.half_then_decay(int(budget.steps(batch_size)))
    losses = theory.expected_loss(problem.with_dataset_size(50_000), schedule, learning_rate=[short, full], **run)
    assert losses[0] <= losses[1] * (1 + 1e-6)
    np.testing.assert_allclose(short, full, rtol=5e-3)


def test_modes_that_too_few_nodes_cannot_resolve_are_noticed():
    """Oscillations that have not died out: the coarsest level disagrees with the next, and is not used."""
    eigenvalues = np.arange(1, 2001.0) ** -1.5
    problem = theory.NoisyQuadratic(eigenvalues, np.sqrt(eigenvalues))
    few, more, *_ = fewer_modes._levels(problem)
    rates = np.exp(np.log(3.98) + fewer_modes.SCAN)
    run = {"learning_rate": rates, "batch_size": 1024, "momentum": 0.99}
    losses = [theory.expected_loss(p, theory.half_then_decay(976), **run) for p in (few, more, problem)]
    assert not fewer_modes._agree(losses[0], losses[1])
    assert not fewer_modes._agree(losses[0], losses[2])
