"""Simulations over grids of learning rates: fixed grids, and grids that grow until optima are bracketed."""

from noisysgd.simulators.sweeps.bracketed import bracketed_sweep, final_losses
from noisysgd.simulators.sweeps.simulated import simulate_sweep
from noisysgd.simulators.sweeps.simulated_pairs import best_pair, bracketed_pairs

__all__ = [
    "best_pair",
    "bracketed_pairs",
    "bracketed_sweep",
    "final_losses",
    "simulate_sweep",
]
