"""Replicas in tiles: how they advance, what is kept of them, how parts of an ensemble become one."""

from noisysgd.simulators.ensembles.parts import join, shares
from noisysgd.simulators.ensembles.tiles import Configuration

__all__ = [
    "Configuration",
    "join",
    "shares",
]
