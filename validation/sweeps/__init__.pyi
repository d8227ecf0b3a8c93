from .trained import Sweep as Sweep
from .trained_pairs import PairSweep as PairSweep
