"""Labelled datasets in netCDF files that carry a digest of what they hold, so that damage is found when they are read.

The format is netCDF 3, which SciPy reads and writes. It has neither checksums nor integers of 64 bits: the attribute
:data:`DIGEST` holds a SHA-256 of the contents, and integers come back in 64 bits. Seeds, which may need these, are
stored as text.
"""

import hashlib
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.files import read_regular, write_whole

if TYPE_CHECKING:
    import xarray as xr

logger = logging.getLogger(__name__)

DIGEST, FORMAT = "contents_sha256", "file_format"
"""Attributes of a file, and of no dataset in memory: the digest of the contents, and the version of the layout."""
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
    stored = dataset.drop_encoding()  # of the file that it may come from: float16, say, or an offset
    stored = stored.assign_coords(seed=stored.seed.astype(str)) if "seed" in stored.coords else stored
    try:
        stored.attrs |= {FORMAT: VERSION}
        stored.attrs |= {DIGEST: contents_digest(dataset.assign_attrs({FORMAT: VERSION}))}
        content = bytes(stored.to_netcdf(engine="scipy"))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        expected = "numbers of at most 32 bits or floats, text, and attributes of these"
        raise ValueError(f"{path}: expected {expected}, got what netCDF 3 cannot hold: {error}.") from error
    _contents(content, path)
    return write_whole(path, content)


def read_dataset(path: str | os.PathLike[str]) -> "xr.Dataset":
    """Read what :func:`write_dataset` wrote.

    A file without a digest, as versions up to 0.9 wrote them, is read with a warning in the log.

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
        wide = {name: each for name, each in stored.variables.items() if each.dtype == np.int32 or name == "seed"}
        # As plain arrays: a DataArray would bring its own narrow coordinates along.
        widened = {name: (each.dims, each.values.astype(np.int64), each.attrs) for name, each in wide.items()}
        dataset = stored.assign_coords({name: each for name, each in widened.items() if name in stored.coords})
        dataset = dataset.assign({name: each for name, each in widened.items() if name not in stored.coords})
        found = contents_digest(dataset)
        written, version = dataset.attrs.pop(DIGEST, None), dataset.attrs.pop(FORMAT, None)
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
