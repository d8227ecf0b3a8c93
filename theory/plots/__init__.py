"""Figures. Every function takes ``ax``, draws on it, and returns what it drew, for the user to style.

Without ``ax`` a new pyplot figure is made, which ``plt.savefig`` writes and a notebook shows; it gets a legend if more
than one thing in it has a label. On a given ``ax`` the caller decides whether to call ``ax.legend()``.

Values that a logarithmic axis cannot show, such as the ``inf`` of runs that diverged, are left out. Matplotlib is
imported when something is drawn, not before, and pyplot only if a figure has to be made.

``sweeps`` has figures of regimes and sweeps, ``problems`` of problems and single runs, ``curves`` of measured learning
curves, ``batch_sizes`` of what depends on the batch size.
"""

from noisysgd.theory.plots.axes_and_colors import COLORS, MARKERS
from noisysgd.theory.plots.batch_sizes import (
    plot_critical_learning_rate,
    plot_noise_scale,
    plot_scaling_rules,
    plot_steps_to_target,
    plot_tradeoff,
)
from noisysgd.theory.plots.curves import plot_measured_curves
from noisysgd.theory.plots.problems import (
    plot_covariance,
    plot_loss_curves,
    plot_schedule,
    plot_spectrum,
    plot_weak_error,
)
from noisysgd.theory.plots.sweeps import plot_losses, plot_optimum, plot_regimes

__all__ = [
    "COLORS",
    "MARKERS",
    "plot_covariance",
    "plot_critical_learning_rate",
    "plot_loss_curves",
    "plot_losses",
    "plot_measured_curves",
    "plot_noise_scale",
    "plot_optimum",
    "plot_regimes",
    "plot_scaling_rules",
    "plot_schedule",
    "plot_spectrum",
    "plot_steps_to_target",
    "plot_tradeoff",
    "plot_weak_error",
]
