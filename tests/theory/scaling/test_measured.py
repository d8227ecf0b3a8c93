"""What measured optima say about scaling, and what they do not."""

import numpy as np
import pytest

from noisysgd import theory


def optima(best_exponents, *, sizes=None, exponents=range(-8, 9)):
    """Optima of a sweep whose losses are smallest at the given powers of two, one for each batch size."""
    sizes = 2.0 ** np.arange(len(best_exponents)) if sizes is None else sizes
    rows = [
        {"momentum": 0.0, "batch_size": size, "learning_rate": 2.0**k, "seed": 0, "status": "complete"}
        | {"train_loss": (k - best) ** 2 + 1.0}
        for size, best in zip(sizes, best_exponents, strict=True)
        for k in exponents
    ]
    return theory.optimum(
        theory.sweep_from_records(rows, source="training", metrics="train_loss"), "train_loss", keep=1
    )


def test_a_linear_rise_and_a_cap_are_found_with_their_errors():
    found = theory.optima_scaling(optima([-5, -4, -3, -2, -1, 0, 0, 0, 0]), "sgd")
    assert float(found.exponent) == pytest.approx(1.0, abs=1e-9)
    # Steps of one octave on either side: 2/√12 octaves for each optimum, over five octaves of six batch sizes.
    assert float(found.exponent_error) == pytest.approx(2 / np.sqrt(12) / np.sqrt(17.5), rel=1e-9)
    assert float(found.boundary_low) < float(found.boundary_batch_size) < float(found.boundary_high)
    assert float(found.boundary_batch_size) == pytest.approx(32.0, rel=0.3)
    assert found.rule.values[0] == "LinearWithCap"
    assert found.attrs["reasons"] == ""


def test_what_is_not_bracketed_is_left_out_and_named():
    found = theory.optima_scaling(optima([-9, -4, -3, -2, -1]), "sgd")
    assert found.batch_size.values.tolist() == [2, 4, 8, 16]
    assert "1 of 5 optima are not bracketed" in found.attrs["reasons"]
    assert "no boundary lies between" in found.attrs["reasons"]
    assert np.isnan(found.boundary_batch_size)


def test_few_optima_identify_nothing():
    found = theory.optima_scaling(optima([-3]), "sgd")
    assert np.isnan([found.exponent, found.exponent_error, found.boundary_batch_size]).all()
    assert "akaike_weight" not in found
    assert found.attrs["reasons"].count(" takes ") == 2


def test_optima_of_something_else_are_refused():
    best = optima([-3, -2, -1])
    with pytest.raises(ValueError, match="optimizer: expected one of 'sgd'"):
        theory.optima_scaling(best, "adam")
    with pytest.raises(ValueError, match="best: expected optima over optimizer and batch_size"):
        theory.optima_scaling(best.squeeze("optimizer"), "sgd")
