"""The Sweep, the dataset that theory, simulators and training share, and the rule that finds its optima."""

from noisysgd.theory.sweeps.dataset import check_sweep, load_sweep, powers_of_two, save_sweep
from noisysgd.theory.sweeps.joining import join_sweeps
from noisysgd.theory.sweeps.optimum_rule import optimum
from noisysgd.theory.sweeps.predicted import predict_sweep
from noisysgd.theory.sweeps.records import sweep_from_records
from noisysgd.theory.sweeps.tables import sweep_from_table

__all__ = [
    "check_sweep",
    "join_sweeps",
    "load_sweep",
    "optimum",
    "powers_of_two",
    "predict_sweep",
    "save_sweep",
    "sweep_from_records",
    "sweep_from_table",
]
