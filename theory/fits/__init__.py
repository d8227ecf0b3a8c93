"""Fits of quadratics to measured learning curves."""

from noisysgd.theory.fits.identification import FittedParameter
from noisysgd.theory.fits.measured_curve import DivergedRun, MeasuredCurve
from noisysgd.theory.fits.quadratic_fit import LawEvidence, QuadraticFit, fit_quadratic

__all__ = ["DivergedRun", "FittedParameter", "LawEvidence", "MeasuredCurve", "QuadraticFit", "fit_quadratic"]
