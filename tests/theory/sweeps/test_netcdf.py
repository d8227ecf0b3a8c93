"""Sweeps in files: what comes back is what was saved, or an error."""

import logging

import numpy as np
import pytest
import xarray as xr

from noisysgd import theory
from noisysgd.theory.sweeps import netcdf
from noisysgd.theory.sweeps.netcdf import DIGEST, FORMAT, contents_digest, read_dataset, write_dataset

FLIPS = 400


def small_sweep():
    """A Sweep with every kind of value that a file may hold, and a seed of 63 bits."""
    records = [
        {"momentum": m, "batch_size": 64, "learning_rate": rate, "seed": seed, "budget": 12.0}
        | (
            {"status": "complete", "train_loss": rate + m, "test_accuracy": None}
            if rate < 2
            else {"status": "diverged"}
        )
        for m in (0.0, 0.9)
        for rate in (0.5, 1.0, 2.0)
        for seed in (0, 2**62 + 1)
    ]
    sweep = theory.sweep_from_records(
        records, source="training", metrics=["train_loss", "test_accuracy"], configuration={"depth": 10, "name": "µ"}
    )
    sweep["counts"] = ("batch_size", np.array([3]))
    return sweep.assign_attrs(plan="[grid]\nλ = 1\n", keep=3, shares=[0.25, 0.5], empty="")


def test_a_dataset_comes_back_with_its_types(tmp_path):
    sweep = small_sweep()
    path = theory.save_sweep(sweep, tmp_path / "sweep.nc")
    loaded = theory.load_sweep(path)
    xr.testing.assert_identical(loaded, sweep)
    for name, variable in sweep.variables.items():
        assert loaded[name].dtype.kind == (variable.dtype.kind if variable.dtype.kind != "U" else "O"), name
    assert loaded.counts.dtype == loaded.seed.dtype == loaded.batch_size.dtype == np.int64
    assert DIGEST not in loaded.attrs
    assert DIGEST not in sweep.attrs, "saving leaves the caller's dataset alone"


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path):
    """Wherever it lies: in names, sizes, kinds, values, attributes, padding, or in the digest itself."""
    sweep = small_sweep()
    path = theory.save_sweep(sweep, tmp_path / "sweep.nc")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for place in rng.choice(8 * len(whole), FLIPS, replace=False):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            loaded = theory.load_sweep(path)
        except ValueError:
            found += 1
        else:
            xr.testing.assert_identical(loaded, sweep)
    assert found > FLIPS / 2, "most of the file is no padding"


def test_without_the_digest_flips_go_unseen(tmp_path):
    """So the test before can fail: of a file without a digest some flips of one bit return other numbers."""
    sweep = small_sweep()
    path = theory.save_sweep(sweep, tmp_path / "sweep.nc")
    sweep.assign_coords(seed=sweep.seed.astype(str)).to_netcdf(path, engine="scipy")
    whole = path.read_bytes()
    place = whole.index(np.array([1.9], ">f8").tobytes())
    path.write_bytes(whole[: place + 7] + bytes([whole[place + 7] ^ 1]) + whole[place + 8 :])
    assert not theory.load_sweep(path).equals(sweep)


def test_a_file_of_an_earlier_version_is_read_with_a_word(tmp_path, caplog):
    sweep = small_sweep().drop_vars("counts")
    path = tmp_path / "sweep.nc"
    sweep.assign_coords(seed=sweep.seed.astype(str)).to_netcdf(path, engine="scipy")
    xr.testing.assert_identical(theory.load_sweep(path), sweep)
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "sweep.nc: has no digest" in warning.getMessage()


@pytest.mark.parametrize("name", [DIGEST, FORMAT])
def test_a_file_that_lost_its_digest_alone_is_damaged(tmp_path, name):
    """A bit in the digest's name would otherwise make a file of an earlier version of it."""
    path = theory.save_sweep(small_sweep(), tmp_path / "sweep.nc")
    path.write_bytes(path.read_bytes().replace(name.encode(), name.upper().encode()))
    with pytest.raises(ValueError, match="damaged"):
        read_dataset(path)


def test_a_file_of_a_later_version_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(netcdf, "VERSION", 3)
    path = theory.save_sweep(small_sweep(), tmp_path / "sweep.nc")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"file_format 2, got 3\. Use the version of noisysgd that wrote it"):
        read_dataset(path)


def test_a_file_that_another_program_changed_is_refused_with_a_way_out(tmp_path):
    path = theory.save_sweep(small_sweep(), tmp_path / "sweep.nc")
    stored = xr.load_dataset(path, engine="scipy")
    (stored * 1.0).assign_attrs(stored.attrs).to_netcdf(path, engine="scipy")
    with pytest.raises(
        ValueError, match=rf"contents of SHA-256 .* on purpose, delete its attributes {FORMAT} and {DIGEST}"
    ):
        read_dataset(path)


def test_one_that_it_wrote_anew_without_a_change_is_read(tmp_path):
    path = theory.save_sweep(small_sweep(), tmp_path / "sweep.nc")
    xr.load_dataset(path, engine="scipy").to_netcdf(tmp_path / "copy.nc", engine="scipy")
    xr.testing.assert_identical(theory.load_sweep(tmp_path / "copy.nc"), small_sweep())


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.assign_attrs(plan="other"),
        lambda s: s.assign_attrs(shares=[0.25, 0.25]),
        lambda s: s.assign_attrs(more=1),
        lambda s: s.rename(counts="count"),
        lambda s: s.rename(budget="budgets"),
        lambda s: s.set_coords("counts"),
        lambda s: s.assign(train_loss=s.train_loss.astype(np.float32)),
        lambda s: s.assign(train_loss=-s.train_loss),
        lambda s: s.assign(status=s.status.astype(float)),
        lambda s: s.transpose(*reversed(list(s.dims))),
        lambda s: s.assign_coords(optimizer=["sgd", "momentum 0.8"]),
        lambda s: s.isel(learning_rate=slice(2)),
        lambda s: s.assign(train_loss=s.train_loss.assign_attrs(units="bits")),
    ],
)
def test_the_digest_sees_every_part(change):
    assert contents_digest(change(small_sweep())) != contents_digest(small_sweep())


def test_what_a_dataset_was_read_from_does_not_coarsen_it(tmp_path):
    """An encoding of another file, such as 16-bit integers with a scale, would round the values."""
    dataset = xr.Dataset({"loss": ("step", [0.123456789, 1.0])})
    dataset.loss.encoding = {"dtype": "int16", "scale_factor": 0.01}
    xr.testing.assert_identical(read_dataset(write_dataset(dataset, tmp_path / "a.nc")), dataset)


def test_numbers_in_units_of_time_stay_numbers(tmp_path):
    dataset = xr.Dataset({"time": ("step", [0.5, 1.0], {"units": "seconds"})})
    xr.testing.assert_identical(read_dataset(write_dataset(dataset, tmp_path / "a.nc")), dataset)


@pytest.mark.parametrize("value", [np.array(["2020-01-01"], "datetime64[ns]"), np.array([1j]), np.array([{}])])
def test_what_the_format_cannot_hold_is_refused_and_leaves_no_file(tmp_path, value):
    with pytest.raises(ValueError, match=r"a\.nc: expected .* netCDF 3 cannot hold"):
        write_dataset(xr.Dataset({"a": ("step", value)}), tmp_path / "a.nc")
    assert list(tmp_path.iterdir()) == []


ATTRIBUTES = {
    "tags": ["a", "µ", ""],
    "nothing": [],
    "flag": True,
    "none": None,
    "large": 2**40,
    "nested": {"a": [1, {"b": "c"}], "d": False},
    "like JSON": "json:x",
}


def test_attributes_of_every_kind_come_back(tmp_path):
    sweep = small_sweep().assign_attrs(ATTRIBUTES)
    sweep.train_loss.attrs["names"] = ["x", "y"]
    sweep.learning_rate.attrs["pair"] = ("x", "y")
    before = sweep.copy(deep=True)
    loaded = theory.load_sweep(theory.save_sweep(sweep, tmp_path / "sweep.nc"))
    assert {name: loaded.attrs[name] for name in ATTRIBUTES} == ATTRIBUTES
    assert loaded.train_loss.attrs == sweep.train_loss.attrs
    assert loaded.learning_rate.attrs["pair"] == ["x", "y"], "JSON knows no tuples"
    xr.testing.assert_identical(sweep, before)
    assert sweep.learning_rate.attrs["pair"] == ("x", "y"), "saving leaves the caller's dataset alone"
    with pytest.raises(ValueError, match="got what netCDF 3 cannot hold: an attribute of type object"):
        theory.save_sweep(sweep.assign_attrs(other=object()), tmp_path / "other.nc")
    assert [each.name for each in tmp_path.iterdir()] == ["sweep.nc"]


@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 2**53])
def test_integers_beyond_32_bits_come_back(tmp_path, size):
    sweep = small_sweep()
    sweep = sweep.assign_coords(batch_size=[size])
    sweep["counts"] = ("batch_size", [-size - 2])
    loaded = theory.load_sweep(theory.save_sweep(sweep, tmp_path / "sweep.nc"))
    xr.testing.assert_identical(loaded, sweep)
    assert loaded.batch_size.dtype == loaded.counts.dtype == np.int64


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert theory.save_sweep(small_sweep(), "~/sweep.nc") == tmp_path / "sweep.nc"
    xr.testing.assert_identical(theory.load_sweep("~/sweep.nc"), small_sweep())
    assert [each.name for each in tmp_path.iterdir()] == ["sweep.nc"]
