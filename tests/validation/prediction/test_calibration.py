"""A known quadratic, measured as if it were a network, is found again; and so are its expected losses."""

import json

import numpy as np
import pytest
import torch
from small_networks import GHOST, dataset, seeded, small_network
from torch import nn

from noisysgd import theory
from noisysgd.validation import Calibration, ImageDataset, calibrate, load_dataset, measure

N, CLASSES = 300, 3


def squared_error(logits, labels):
    return 0.5 * (logits - nn.functional.one_hot(labels, CLASSES).to(logits)).square().sum(dim=1).mean()


def least_squares():
    """A linear network on random images, and the exact noisy quadratic that it is."""
    generator = torch.Generator().manual_seed(8)
    images = torch.randn(N, 1, 8, 8, generator=generator) * torch.linspace(0.5, 1.5, 8)
    labels = (images.flatten(1)[:, :CLASSES] + 0.5 * torch.randn(N, CLASSES, generator=generator)).argmax(dim=1)
    data = ImageDataset("linear", images, labels, images[:4], labels[:4], CLASSES, "seeded normals")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES, bias=False))
    with torch.no_grad():
        model[1].weight.normal_(0.0, 0.3, generator=generator)
    x, y = images.flatten(1).double().numpy(), np.eye(CLASSES)[labels.numpy()]
    start = model[1].weight.detach().double().numpy()
    values, vectors = np.linalg.eigh(x.T @ x / N)
    residual = x @ start.T - y
    per_example = residual[:, :, None] * (x @ vectors)[:, None, :]  # gradients, (N, classes, eigendirection)
    noise = per_example.var(axis=0)
    minimum = np.linalg.lstsq(x, y, rcond=None)[0].T
    displacement = (start - minimum) @ vectors
    exact = theory.NoisyQuadratic(
        np.tile(values, CLASSES), noise.ravel(), displacement.ravel(), initial_variance=0.0, dataset_size=N
    )
    return model, data, exact


OPTIONS = {"criterion": squared_error, "units": 1024, "noise_draws": 8, "probes": 4, "sharpness_batches": 0}
SETTINGS = [(0.02, 4, 0.0, 200), (0.3, 8, 0.0, 50), (0.05, 16, 0.9, 100), (0.4, 64, 0.5, 400), (0.1, N, 0.9, 30)]


def losses(problem):
    return np.array(
        [
            float(theory.expected_loss(problem, theory.half_then_decay(n), learning_rate=e, batch_size=b, momentum=m))
            for e, b, m, n in SETTINGS
        ]
    )


@pytest.fixture(scope="module")
def found():
    model, data, exact = least_squares()
    return exact, Calibration.from_measurement(measure(model, data, ghost_batch_size=GHOST, steps=14, **OPTIONS))


def test_the_quadratic_is_recovered(found):
    exact, seen = found
    problem = seen.problem
    assert problem.dim <= 182 < exact.dim  # fewer nodes than eigenvalues: quadrature is at work
    assert seen.dropped_modes == seen.dropped_noise == seen.dropped_gradient == 0
    assert problem.dataset_size == N
    assert float(problem.largest_eigenvalue) == pytest.approx(float(exact.largest_eigenvalue), rel=1e-3)
    assert problem.weights.sum() == pytest.approx(exact.dim)
    # Displacement and gradient are functions of one vector that the Krylov space starts from: no sampling error.
    assert float(problem.initial_loss) == pytest.approx(float(exact.initial_loss), rel=1e-3)
    slope = problem.weights * problem.eigenvalues**2 * problem.initial_second_moment
    assert slope.sum() == pytest.approx((exact.eigenvalues**2 * exact.initial_second_moment).sum(), rel=1e-4)
    # tr F and tr(HF) have the error that the replicates show.
    for power in (0, 1):
        draws = [(p.weights * p.noise * p.eigenvalues**power).sum() for p in seen.replicates]
        true = (exact.noise * exact.eigenvalues**power).sum()
        error = np.std(draws, ddof=1) / np.sqrt(len(draws))
        assert abs(np.mean(draws) - true) < 5 * error < 0.3 * true


def inside(exact, seen):
    """Whether each loss is within five stated errors: not so once in 600 by chance (Student's t, 7 degrees)."""
    value, error = seen.predict(losses)
    assert (error < 0.1 * value).all()
    return np.abs(value - losses(exact)) <= 5 * error


def test_expected_losses_of_the_calibrated_problem_are_the_true_ones(found):
    exact, seen = found
    assert inside(exact, seen).all()
    np.testing.assert_allclose(losses(seen.problem), losses(exact), rtol=0.05)


def test_power_wrong_noise_and_wrong_curvature_are_noticed(found):
    exact, seen = found
    louder = theory.NoisyQuadratic(exact.eigenvalues, 1.3 * exact.noise, exact.initial_mean, 0.0, dataset_size=N)
    steeper = theory.NoisyQuadratic(1.2 * exact.eigenvalues, exact.noise, exact.initial_mean, 0.0, dataset_size=N)
    assert not inside(louder, seen)[:4].any()  # the last is of full batches, without noise
    assert not inside(steeper, seen).all()


def test_without_noise_the_first_steps_are_exact_however_few_the_nodes():
    """Gauss quadrature: m products along the gradient make 2m − 1 powers exact, and the loss falls by such powers."""
    model, data, exact = least_squares()
    problem = calibrate(measure(model, data, ghost_batch_size=GHOST, steps=3, **OPTIONS), flat=0.0)
    options = {"learning_rate": 0.3, "batch_size": N}
    for steps in (1, 2):
        fall = [
            float(p.initial_loss - theory.expected_loss(p, theory.constant(steps), **options)) for p in (problem, exact)
        ]
        assert fall[0] == pytest.approx(fall[1], rel=1e-5)


def test_records_do_as_well_as_measurements():
    measured = measure(small_network(), dataset(), ghost_batch_size=GHOST, units=16)
    one = calibrate(measured)
    other = calibrate(json.loads(json.dumps(measured.as_dict(), allow_nan=False)))
    for name in ("eigenvalues", "weights", "noise", "initial_second_moment"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_negative_curvature_is_left_out_and_reported():
    measured = measure(small_network(), dataset(), ghost_batch_size=GHOST, units=16)
    density, gradient = measured.spectrum.density, measured.spectrum.gradient
    seen = Calibration.from_measurement(measured, flat=0.01)
    kept = density.nodes > 0.01 * density.nodes.max()
    assert 0 < seen.negative_modes < seen.dropped_modes < 1
    assert seen.problem.weights.sum() == pytest.approx((1 - seen.dropped_modes) * measured.parameters)
    assert seen.dropped_gradient == pytest.approx(gradient[~kept].sum() / gradient.sum())
    assert (seen.problem.weights * seen.problem.noise).sum() == pytest.approx(
        (1 - seen.dropped_noise) * measured.spectrum.noise.sum(axis=1).mean()
    )
    assert Calibration.from_measurement(measured, flat=0.5).dropped_modes > seen.dropped_modes


def record(**changes):
    """A valid record but for the changes."""
    density = {"nodes": [2.0, 1.0], "draws": [[1.0, 3.0]], "converged": True}
    density |= {name: changes.pop(name) for name in tuple(changes) if name in density}
    return {
        "spectrum": {"density": density, "gradient": [4.0, 3.0], "noise": [[10.0, 30.0]]} | changes,
        "dataset_size": 9,
    }


def test_a_valid_record_is_calibrated():
    assert calibrate(record()).dim == 2
    rounded = calibrate(record(noise=[[-1e-7, 30.0]]))
    assert rounded.noise.tolist() == [0.0, 10.0]


@pytest.mark.parametrize(
    ("record", "flat", "message"),
    [
        ({"spectrum": None, "dataset_size": 3}, 0.0, "a spectrum and a dataset_size"),
        ({"dataset_size": 3}, 0.0, "probes > 0"),
        ({"spectrum": {"density": {"nodes": [None]}}, "dataset_size": 3}, 0.0, "finite nodes"),
        ({}, 1.0, "flat: expected a share of λ_max"),
        (None, 0.0, r"measurement: expected a Measurement or its as_dict\(\), got None. Measure"),
        (3, 0.0, "measurement: expected a Measurement"),
        ({"spectrum": 3, "dataset_size": 3}, 0.0, "measurement: expected a spectrum with 'density', got 3. Pass"),
        (record(nodes=[]), 0.0, r"measurement: expected at least one node, got \[\]. Pass"),
        (record(nodes=None), 0.0, "measurement: expected at least one node"),
        (record(gradient=[1.0]), 0.0, r"gradient: expected rows of 2 numbers, got \[1\]. Pass"),
        (record(gradient=None), 0.0, "gradient: expected rows of 2 numbers"),
        (record(gradient=[None, 1.0]), 0.0, "gradient: expected numbers without NaN, got .*diverged"),
        (record(noise=[[1.0, 2.0], [1.0]]), 0.0, r"noise: expected rows of 2 numbers, got \[2, 1\]. Pass"),
        (record(noise=[]), 0.0, "noise: expected rows of 2 numbers"),
        (record(noise=[[-1.0, 2.0]]), 0.0, "noise: expected values ≥ 0, got .*Pass"),
        (record(draws=[[1.0, 3.0, 1.0]]), 0.0, r"density.draws: expected rows of 2 numbers, got \[3\]"),
        (record(coarse={"density": {"nodes": [None]}}), 0.0, "measurement: expected finite nodes"),
        (
            {
                "spectrum": {"density": {"nodes": [-1.0], "draws": [[1.0]]}, "gradient": [1.0], "noise": [[1.0]]},
                "dataset_size": 3,
            },
            0.0,
            "some positive curvature",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused(record, flat, message):
    with pytest.raises(ValueError, match=message):
        calibrate(record, flat=flat)


def classified(seed):
    """A small classifier whose Krylov space is everything, so that rounding is all that is left over."""
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(512, 1, 4, 4, generator=generator), torch.randint(3, (512,), generator=generator)
    data = ImageDataset("random", images, labels, images[:8], labels[:8], classes=3, provenance="seeded normals")
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    return measure(model, data, ghost_batch_size=8, units=64, sharpness_batches=0, seed=seed)


@pytest.mark.parametrize("seed", range(6))
def test_rounding_makes_no_negative_noise_and_no_curvature(seed):
    """Softmax: a third of the directions are flat. Single nodes hold all of tr F, and rounding a little more."""
    found = classified(seed)
    assert (found.spectrum.noise >= 0).all()
    assert (np.abs(found.spectrum.density.nodes) < 1e-6 * found.lambda_max.value).sum() > 3
    problem = calibrate(found, flat=0.0)
    assert problem.eigenvalues.min() > 1e-6 * problem.largest_eigenvalue
    assert float(problem.initial_loss) < 100


def test_a_prediction_that_depends_on_curvature_alone_has_an_error_too():
    """The critical learning rate, on which replicates and half of the products agree, against double precision."""
    data, outside = load_dataset("digits"), 0
    for seed in range(6):
        model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), scale=0.1)
        options = {"units": 16, "sharpness_batches": 0, "seed": seed}
        seen = Calibration.from_measurement(measure(model, data, **options))
        double = measure(model.double(), data, **options | {"probes": 0, "rtol": 1e-9, "max_products": 100})
        exact = 2 / double.lambda_max.value
        value, error = seen.predict(theory.critical_learning_rate)
        assert abs(value - exact) <= error < 1e-4 * exact
        others = [float(theory.critical_learning_rate(problem)) for problem in (*seen.replicates, seen.coarse)]
        outside += abs(value - exact) > 5 * np.abs(value - np.array(others)).max()
    assert outside > 3


def test_single_eigenvalues_are_as_uncertain_as_their_residuals():
    density = {"residuals": [0.1, 0.5], "single": [True, False]}
    seen = Calibration.from_measurement(record())
    assert seen.shifted.eigenvalues == pytest.approx([2.0, 1.0], rel=1e-5)
    state = record()
    state["spectrum"]["density"] |= density
    seen = Calibration.from_measurement(state)
    assert seen.shifted.eigenvalues == pytest.approx([2.1, 1.0], rel=1e-5)
    assert seen.shifted.eigenvalues[1] > 1.0
    state["spectrum"]["noise"] *= 2
    state["spectrum"]["coarse"] = record()["spectrum"]
    value, error = Calibration.from_measurement(state).predict(theory.critical_learning_rate)
    assert value == pytest.approx(1.0)
    assert error == pytest.approx(1 - 2 / 2.1)


def test_one_replicate_has_no_spread():
    assert Calibration.from_measurement(record()).predict(lambda problem: problem.noise[0])[1] == np.inf


def test_a_calibration_is_shown_in_a_line():
    text = repr(Calibration.from_measurement(record()))
    assert text == (
        "<Calibration: 2 nodes for 4 modes, λ_max = 2, tr H = 5, tr F = 40; "
        "left out 0% of the directions, 0% of |g|² and 0% of tr F>"
    )
