"""Labelled datasets in netCDF files that carry a digest of what they hold, so that damage is found when they are read.

The format is netCDF 3, which SciPy reads and writes. It has neither checksums nor integers of 64 bits: the attribute
:data:`DIGEST` holds a SHA-256 of the contents, and integers come back in 64 bits. Those that need these, and seeds, are
stored as text, and attributes that are neither text nor numbers as JSON.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.files import expanded, read_regular, write_whole

if TYPE_CHECKING:
    import xarray as xr

logger = logging.getLogger(__name__)

DIGEST, FORMAT = "contents_sha256", "file_format"
"""Attributes of a file, and of no dataset in memory: the digest of the contents, and the version of the layout."""
WIDE = "integers_as_text"
"""Attribute of a file: names of the integers in it, besides seeds, that are stored as text."""
JSON = "json:"
"""Beginning of attributes that are stored as JSON."""
VERSION = 2
"""Version of the layout. Files of the first have neither attribute."""


def write_dataset(dataset: "xr.Dataset", path: str | os.PathLike[str]) -> Path:
    """Write a dataset as netCDF, with its digest, and return the path.

    What was written is read again before it has its name: a file that :func:`read_dataset` would refuse, or from which
    it would return something else, is not left behind.

    Raises
    ------
    ValueError
        If netCDF 3 cannot hold the dataset, or `path` is no regular or new file.
    OSError
        If the file cannot be written.
    """
    path = expanded("path", path)
    stored = dataset.drop_encoding()  # of the file that it may come from: float16, say, or an offset
    try:
        for attributes in (stored.attrs, *(variable.attrs for variable in stored.variables.values())):
            attributes |= {name: _plain(value) for name, value in attributes.items()}
        wide = [str(name) for name, variable in stored.variables.items() if _needs_text(str(name), variable)]
        stored.attrs |= {FORMAT: VERSION} | ({WIDE: _plain(wide)} if wide else {})
        stored.attrs |= {DIGEST: contents_digest(stored)}
        stored = _converted(stored, dict.fromkeys({*wide, "seed"} & set(map(str, stored.variables)), str))
        content = _netcdf(stored)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        expected = "numbers of at most 32 bits or floats, text, and attributes of these"
        raise ValueError(f"{path}: expected {expected}, got what netCDF 3 cannot hold: {error}.") from error
    _contents(content, path)
    return write_whole(path, content)


def _netcdf(dataset: "xr.Dataset") -> bytes:
    """A dataset as netCDF 3: what ``Dataset.to_netcdf`` makes, which first imports Dask's scheduler where it can."""
    from xarray.backends import ScipyDataStore

    odd = [name for name in (*dataset.variables, *dataset.dims, *dataset.attrs) if not (name and isinstance(name, str))]
    checks.require(not odd, "dataset", "names that are text", odd, "Rename these.")
    buffer = io.BytesIO()
    with contextlib.closing(ScipyDataStore(buffer, mode="w")) as store:
        dataset.dump_to_store(store)
        store.sync()
        return buffer.getvalue()


def read_dataset(path: str | os.PathLike[str]) -> "xr.Dataset":
    """Read what :func:`write_dataset` wrote.

    A file without a digest, as earlier versions wrote them, is read with a warning in the log.

    Raises
    ------
    ValueError
        If the file is not netCDF 3, or is damaged, or was changed by another program.
    OSError
        If it cannot be read.
    """
    return _contents(read_regular(path), path)


def _contents(content: bytes, path: str | os.PathLike[str]) -> "xr.Dataset":
    """The dataset in the bytes of a file, if these have the digest that they should have; `path` is for messages."""
    import xarray as xr

    try:
        # Times stay numbers: a metric in units of seconds, or a budget in hours, is no date.
        with xr.open_dataset(io.BytesIO(content), engine="scipy", decode_times=False) as opened:
            stored = opened.load()
        text = {"seed", *(_restored(stored.attrs[WIDE]) if WIDE in stored.attrs else ())}
        wide = [name for name, each in stored.variables.items() if each.dtype == np.int32 or name in text]
        dataset = _converted(stored, dict.fromkeys(map(str, wide), np.int64))
        found = contents_digest(dataset)
        written, version = dataset.attrs.pop(DIGEST, None), dataset.attrs.pop(FORMAT, None)
        dataset.attrs.pop(WIDE, None)
        if written is not None:
            for attributes in (dataset.attrs, *(variable.attrs for variable in dataset.variables.values())):
                attributes |= {name: _restored(value) for name, value in attributes.items()}
        if (written is None) != (version is None):
            raise ValueError(f"it has only one of {FORMAT} and {DIGEST}")
    except Exception as error:  # a damaged file makes readers raise errors of any kind
        message = f"{path}: expected a Sweep as netCDF 3, got a file that is not or is damaged ({error})."
        raise ValueError(f"{message} Pass one made by save_sweep or noisysgd sweep export.") from error
    if written is None:
        logger.warning("%s: has no digest, as files of earlier versions: damage to it would not be seen", path)
        return dataset
    remedy = f"Put back a copy. If you changed it on purpose, delete its attributes {FORMAT} and {DIGEST}."
    checks.require(written == found, str(path), f"contents of SHA-256 {written}", found, remedy)
    newer = "Use the version of noisysgd that wrote it."
    checks.require(version == VERSION, str(path), f"{FORMAT} {VERSION}", version, newer)
    return dataset


def _converted(dataset: "xr.Dataset", types: Mapping[str, type]) -> "xr.Dataset":
    """A dataset with these variables in other types."""
    # As plain arrays: a DataArray would bring its own unconverted coordinates along.
    old = {name: (dataset.variables[name], kind) for name, kind in types.items()}
    new: dict[str, Any] = {
        name: (each.dims, each.values.astype(kind), each.attrs) for name, (each, kind) in old.items()
    }
    converted = dataset.assign_coords({name: each for name, each in new.items() if name in dataset.coords})
    return converted.assign({name: each for name, each in new.items() if name not in dataset.coords})


def _needs_text(name: str, variable: "xr.Variable") -> bool:
    """Whether a variable, other than seeds, has integers that need more than 32 bits."""
    values, limits = variable.values, np.iinfo(np.int32)
    if name == "seed" or values.dtype.kind not in "iu" or not values.size:
        return False
    return bool(values.min() < limits.min or values.max() > limits.max)


def _plain(value: Any) -> Any:
    """An attribute as netCDF 3 can hold it: text, numbers, or JSON as text."""
    if isinstance(value, str):
        return JSON + json.dumps(value) if value.startswith(JSON) else value
    kind = np.asarray(value).dtype.kind
    if kind in "iu" and np.size(value) and np.abs(np.asarray(value, dtype=np.float64)).max() < 2**31:
        return value
    return value if kind == "f" and np.size(value) else JSON + json.dumps(value, default=_listed)


def _listed(value: object) -> object:
    """Arrays, tuples and NumPy's scalars as what JSON knows."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"an attribute of type {type(value).__name__}")


def _restored(value: object) -> Any:
    """An attribute as it was before :func:`_plain`; tuples and arrays of text or truth values are lists then."""
    return json.loads(value[len(JSON) :]) if isinstance(value, str) and value.startswith(JSON) else value


def contents_digest(dataset: "xr.Dataset") -> str:
    """SHA-256 of a dataset: of names, dimensions, kinds of numbers, values and attributes.

    It depends on what the dataset holds and not on how a file lays it out: the width of integers, the order of
    variables and attributes, and whether a single number is an array make no difference.

    >>> import xarray as xr
    >>> one = xr.Dataset({"loss": ("step", [1.0, 2.0])}, {"step": [0, 1]}, {"source": "theory"})
    >>> contents_digest(one) == contents_digest(one.assign_coords(step=one.step.astype("int8")))
    True
    >>> contents_digest(one) == contents_digest(one.assign(loss=one.loss.astype("float32")))
    False
    """
    digest = hashlib.sha256()
    for name, variable in sorted(dataset.variables.items(), key=lambda item: str(item[0])):
        role = "coordinate" if name in dataset.coords else "variable"
        _feed(digest, role, str(name), *map(str, variable.dims), str(variable.shape), _canonical(variable.values))
        _feed_attributes(digest, variable.attrs)
    _feed_attributes(digest, {name: value for name, value in dataset.attrs.items() if name != DIGEST})
    return digest.hexdigest()


def _feed_attributes(digest: Any, attributes: Mapping[Any, Any]) -> None:
    for name, value in sorted(attributes.items(), key=lambda item: str(item[0])):
        _feed(digest, "attribute", str(name), _canonical(np.asarray(value)))


def _feed(digest: Any, *parts: str | bytes) -> None:
    """Hash the parts, after their number and each after its length, so that no two sequences feed the same bytes."""
    digest.update(f"{len(parts)}\n".encode())
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(content)}\n".encode() + content)


def _canonical(values: "np.typing.NDArray[Any]") -> bytes:
    """The kind of some values and the values, as bytes that do not depend on the machine or the width of integers."""
    kind = values.dtype.kind
    if kind in "biu":
        return b"integers" + values.astype("<i8").tobytes()
    if kind == "f":
        return f"float{values.itemsize}".encode() + values.astype(values.dtype.newbyteorder("<")).tobytes()
    texts = [each.decode() if isinstance(each, bytes) else each for each in values.ravel().tolist()]
    plain = all(isinstance(each, str) for each in texts)
    checks.require(plain, "dataset", "numbers and text", values.dtype.name, "Convert the others.")
    return b"text" + b"".join(f"{len(each.encode())}\n{each}".encode() for each in texts)
