"""Objects that are nothing but their values: compared, hashed, copied and pickled by their fields, arrays included."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.describing import html_table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class ByValue:
    """Base of frozen dataclasses with arrays, made with ``eq=False``: equal if of one type and equal in every field.

    A dataclass's own comparison fails for arrays. Copies, and what pickle restores, have read-only arrays as well. In
    notebooks such objects are shown as tables.

    >>> from noisysgd import theory
    >>> theory.constant(5) == theory.piecewise([2, 3], [1.0, 1.0])
    True
    >>> len({theory.power_law(3), theory.power_law(3), theory.power_law(4)})
    2
    """

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return other is self or all(
            np.array_equal(ours, theirs) for ours, theirs in zip(_values(self), _values(other), strict=True)
        )

    def __hash__(self) -> int:
        # Matrices are left out: they are large, and what differs in nothing else may have one hash.
        values = (value for value in _values(self) if np.ndim(value) < 2)
        return hash((type(self), *(value.tobytes() if isinstance(value, np.ndarray) else value for value in values)))

    _repr_html_ = html_table

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._freeze(**{name: value for name, value in state.items() if isinstance(value, np.ndarray)})
        self.__dict__.update({name: value for name, value in state.items() if not isinstance(value, np.ndarray)})

    def _freeze(self, **values: FloatArray | IntArray) -> None:
        """Store read-only copies of arrays in fields."""
        for name, value in values.items():
            frozen = np.array(value, order="C")
            frozen += 0  # there is one zero only, or equal objects could have different hashes
            frozen.flags.writeable = False
            object.__setattr__(self, name, frozen)


def _values(thing: Any) -> list[Any]:
    instance: DataclassInstance = thing
    return [getattr(instance, field.name) for field in fields(instance)]
