"""Parts of an ensemble, joined, are the ensemble: every bit of it, or an error."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from bitwise import assert_bitwise
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import simulators, theory
from noisysgd.simulators.ensembles import tile_moments, tiles

SCHEDULE = theory.half_then_decay(24)
SETTINGS = {"learning_rate": [0.1, 0.4, 1e40], "batch_size": 4, "momentum": 0.5, "record": [0, 7]}
DYNAMICS = ("sgd", "sde", "jump")
DATA = simulators.FiniteLeastSquares(np.eye(5, 3) + 0.1, np.arange(5.0), initial_variance=0.5)
MODELS = {
    "minibatch": {"problem": DATA, "dynamics": "minibatch", "batch_size": 2},
    "reshuffle": {"problem": DATA, "dynamics": "minibatch", "batch_size": 2, "sampling": "reshuffle"},
    "network": {"problem": simulators.sparse_regression(6, 4, nonzero=2), "dynamics": "minibatch", "batch_size": 3},
    "network sde": {"problem": simulators.sparse_regression(6, 4, nonzero=2), "dynamics": "sde", "substeps": 2},
}


def problem(dim: int = 3, *, full: bool = False) -> theory.NoisyQuadratic:
    eigenvalues = np.linspace(0.5, 1.5, dim)
    noise = np.diag(eigenvalues) + 0.2 if full else eigenvalues
    return theory.NoisyQuadratic(eigenvalues, noise, initial_mean=0.3, initial_variance=1.0)


def simulate(**changes: object) -> xr.Dataset:
    arguments = {"problem": problem(), "schedule": SCHEDULE, "replicas": 300, "threads": 2} | SETTINGS | changes
    return simulators.simulate(**arguments)


def parts(replicas: int = 300, count: int = 3, **changes: object) -> list[xr.Dataset]:
    return [simulate(**share, keep_tiles=True, **changes) for share in simulators.shares(replicas, count)]


@st.composite
def cut_ensembles(draw: st.DrawFn) -> tuple[int, list[dict[str, int]]]:
    """A number of replicas, an offset, and parts cut at any borders of tiles, in any order."""
    replicas = draw(st.integers(2, 800))
    first = draw(st.sampled_from([0, 1, 1000, 2**32 - 800]))
    borders = range(128, replicas - 1, 128)
    cuts = sorted(draw(st.sets(st.sampled_from(borders)))) if borders else []
    cut = [{"replica_offset": first + a, "replicas": b - a} for a, b in itertools.pairwise([0, *cuts, replicas])]
    return {"replica_offset": first, "replicas": replicas}, draw(st.permutations(cut))


@pytest.mark.parametrize("model", MODELS)
def test_models_made_of_examples_are_joined_with_all_their_losses(model) -> None:
    """One learning rate diverges; the parts come in any order, and the result can be joined again."""
    cut, whole = parts(**MODELS[model]), simulate(**MODELS[model])
    assert_bitwise(simulators.join(cut[::-1]), whole)
    nested = [simulators.join(cut[:2], keep_tiles=True), cut[2]]
    assert_bitwise(simulators.join(nested), whole)
    assert {"train_loss", "test_loss"} <= set(whole) or "loss" in whole


@pytest.mark.parametrize("dynamics", DYNAMICS)
@settings(max_examples=100)
@given(
    ensemble=cut_ensembles(),
    full=st.booleans(),
    momentum=st.sampled_from([0.0, 0.9]),
    seed=st.sampled_from([0, 2**64 - 1]),
    axes=st.sampled_from([0.3, [0.3], [0.1, 1e40], np.array([[0.1], [0.3]])]),
)
def test_a_join_is_the_unsplit_ensemble_bit_for_bit(dynamics, ensemble, full, momentum, seed, axes) -> None:
    whole, cut = ensemble
    same = {"dynamics": dynamics, "problem": problem(full=full), "momentum": momentum, "seed": seed}
    same["learning_rate"] = axes
    results = [simulate(**same, **share, keep_tiles=True) for share in cut]
    assert_bitwise(simulators.join(results), simulate(**same, **whole))
    assert_bitwise(simulators.join(results, keep_tiles=True), simulate(**same, **whole, keep_tiles=True))


@pytest.mark.parametrize("noise", ["student_t", "uniform"])
def test_other_noise_and_heavy_tails_join(noise: str) -> None:
    same = {"noise": noise} | ({"degrees_of_freedom": 0.5} if noise == "student_t" else {})
    assert_bitwise(simulators.join(parts(**same)), simulate(**same))


def test_configurations_of_which_some_tiles_diverged_join() -> None:
    same = {"learning_rate": 10 ** np.linspace(12.0, 13.0, 400), "schedule": theory.constant(12)}
    cut = parts(**same)
    diverged = np.isposinf(np.concatenate([part.loss_tile_mean[:, -1] for part in cut], axis=-1))
    assert (diverged.any(axis=-1) & ~diverged.all(axis=-1)).any(), "chosen so that losses end where floats do"
    assert_bitwise(simulators.join(reversed(cut)), simulate(**same))


def test_joins_can_be_joined() -> None:
    one, two, three = parts()
    later = simulators.join([three, two], keep_tiles=True)
    assert_bitwise(simulators.join([later, one]), simulate())


def test_parts_survive_pickling() -> None:
    assert_bitwise(simulators.join(pickle.loads(pickle.dumps(parts()))), simulate())


def test_parts_survive_files(tmp_path: Path) -> None:
    for k, part in enumerate(parts()):
        part.to_netcdf(tmp_path / f"{k}.nc", engine="scipy")
    read = [xr.load_dataset(path, engine="scipy") for path in tmp_path.iterdir()]
    found, expected = simulators.join(read), simulate()
    for name in ("loss", "loss_stderr"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert found.attrs == expected.attrs


def test_keeping_tiles_changes_nothing_else() -> None:
    result = simulate(keep_tiles=True)
    assert_bitwise(result.drop_vars([str(name) for name in result.variables if "tile" in str(name)]), simulate())
    assert result.tile_replicas.values.tolist() == [128, 128, 44]
    assert result.loss_tile_mean.dims == ("learning_rate", "step", "tile")
    np.testing.assert_allclose(result.loss[:2], result.loss_tile_mean[:2] @ result.tile_replicas / 300, rtol=1e-14)
    assert np.isposinf(result.loss_tile_mean[2, -1]).all(), "a diverged configuration belongs to these tests"


def test_tiles_take_the_memory_that_is_stated() -> None:
    result = simulate(replicas=1280, keep_tiles=True)
    configurations, records, count = 3, 3, 10
    tables = result.loss_tile_mean.nbytes + result.loss_tile_deviations.nbytes
    assert tables == 16 * configurations * records * count


@given(
    replicas=st.integers(2, 5000) | st.integers(1, 39).map(lambda tiles: 128 * tiles + 1),
    count=st.integers(1, 50),
    first=st.integers(0, 1000),
)
def test_shares_cover_every_replica_once(replicas: int, count: int, first: int) -> None:
    cut = simulators.shares(replicas, count, replica_offset=first)
    assert 1 <= len(cut) <= count
    assert len(cut) >= min(count, replicas // 128)
    assert cut[0]["replica_offset"] == first
    ends = [share["replica_offset"] + share["replicas"] for share in cut]
    assert ends[-1] == first + replicas
    assert [share["replica_offset"] for share in cut[1:]] == ends[:-1]
    assert all((end - first) % 128 == 0 for end in ends[:-1])
    numbers = [share["replicas"] for share in cut]
    assert min(numbers) >= 2
    assert max(numbers) - min(numbers) <= 256


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "attribute seed: expected 0 in every part, got 1"),
        ({"noise": "uniform"}, "attribute noise"),
        ({"dynamics": "jump"}, "attribute dynamics"),
        ({"dynamics": "sde"}, "attribute dynamics"),
        ({"learning_rate": [0.1, 0.4, 0.9]}, "coordinate .*learning_rate"),
        ({"learning_rate": [0.1, 0.4]}, "coordinate .*learning_rate"),
        ({"learning_rate": 0.1}, "coordinate .*learning_rate"),
        ({"momentum": 0.25}, "coordinate .*"),
        ({"batch_size": 8}, "coordinate .*"),
        ({"record": [0, 8]}, "coordinate step"),
        ({"schedule": theory.constant(24)}, "one problem, schedule"),
        ({"schedule": theory.constant(25)}, "coordinate step"),
        ({"problem": problem(4)}, "one problem, schedule"),
        ({"problem": problem(full=True)}, "one problem, schedule"),
        ({"problem": theory.NoisyQuadratic([0.5, 1, 1.5], [0.5, 1, 1.5], 0.3, 1.0 + 2**-52)}, "one problem, schedule"),
    ],
    ids=str,
)
def test_parts_of_different_experiments_are_refused(change: dict[str, object], message: str) -> None:
    first, second = simulators.shares(300, 2)
    one, other = simulate(**first, keep_tiles=True), simulate(**second, keep_tiles=True, **change)
    for pair in ([one, other], [other, one]):
        with pytest.raises(ValueError, match=r"expected .*, got .*\. \S.*\."):
            simulators.join(pair)
    with pytest.raises(ValueError, match=message):
        simulators.join([one, other])


def test_parts_whose_roots_of_the_noise_differ_in_a_bit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of two versions of LAPACK may, or of one with another number of threads."""
    one = simulate(problem=problem(full=True), replicas=128, keep_tiles=True)
    root = tiles.square_root
    monkeypatch.setattr(tiles, "square_root", lambda covariance: np.nextafter(root(covariance), np.inf))
    other = simulate(problem=problem(full=True), replicas=172, replica_offset=128, keep_tiles=True)
    with pytest.raises(ValueError, match="same LAPACK"):
        simulators.join([one, other])


def test_substeps_and_degrees_of_freedom_must_agree() -> None:
    first, second = simulators.shares(300, 2)
    for name, values in {"substeps": (4, 5), "degrees_of_freedom": (3.0, 4.0)}.items():
        same = {"noise": "student_t", "dynamics": "sde", "keep_tiles": True}
        pair = [simulate(**same, **share, **{name: v}) for share, v in zip((first, second), values, strict=True)]
        with pytest.raises(ValueError, match=f"attribute {name}"):
            simulators.join(pair)


def test_gaps_overlaps_and_cuts_within_tiles_are_refused() -> None:
    one, two, three = parts()

    def part(first: int, count: int) -> xr.Dataset:
        return simulate(replica_offset=first, replicas=count, keep_tiles=True)

    for chosen, message in [
        ([one, three], r"begin at replica 128, got 256\. A part is missing"),
        ([one, two, two, three], r"begin at replica 256, got 128\. Pass every part once"),
        ([one, part(100, 200)], r"begin at replica 128, got 100\. Pass every part once"),
        ([part(0, 100), part(100, 200)], r"multiple of 128 in every part but the last, got 100\. Cut at multiples"),
        ([], "at least one part"),
    ]:
        with pytest.raises(ValueError, match=message):
            simulators.join(chosen)


def test_what_is_not_a_part_is_refused() -> None:
    one, two, three = parts()
    for chosen in ([one, simulate(replicas=172, replica_offset=128)], [one.loss], [xr.Dataset()], [one, None]):
        with pytest.raises(ValueError, match=r"keep_tiles=True"):
            simulators.join(chosen)
    with pytest.raises(ValueError, match="tiles of 300 replicas"):
        simulators.join([simulate(keep_tiles=True).isel(tile=slice(2))])
    with pytest.raises(ValueError, match="coordinate step"):
        simulators.join([one, two.isel(step=[0]), three])


def test_equal_selections_join() -> None:
    found = simulators.join(part.isel(step=-1, learning_rate=[1]) for part in parts())
    assert_bitwise(found, simulate().isel(step=-1, learning_rate=[1]))


def test_bad_shares_are_refused() -> None:
    for bad in ((1, 1), (100, 0), (2.5, 1), (2**32 + 1, 3), ("many", 2)):
        with pytest.raises(ValueError, match=r"expected .*, got .*\. \S.*\."):
            simulators.shares(*bad)
    with pytest.raises(ValueError, match="replica_offset"):
        simulators.shares(300, 2, replica_offset=2**32 - 200)


def test_an_axis_may_not_be_called_tile_only_where_tiles_are_kept() -> None:
    rates = xr.DataArray([0.1, 0.2], dims="tile")
    assert simulate(learning_rate=rates).loss.dims == ("tile", "step")
    with pytest.raises(ValueError, match="no axis or label 'tile'"):
        simulate(learning_rate=rates, keep_tiles=True)


def test_a_fingerprint_sees_every_bit() -> None:
    values = [np.zeros(3), np.zeros(3, np.float32), np.zeros((3, 1)), -np.zeros(3), 0.0, 0, "0", None]
    assert len({tile_moments.fingerprint(value) for value in values}) == len(values)
    assert tile_moments.fingerprint(np.arange(4)[::2]) == tile_moments.fingerprint(np.array([0, 2]))
