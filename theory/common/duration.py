"""Lengths of time in words."""


def duration(seconds: float, *, rough: bool = False) -> str:
    """A length of time in words, by its two largest units.

    Parameters
    ----------
    seconds : float
    rough : bool
        For estimates: tenths of a second below ten seconds, whole minutes below an hour, days from 48 hours on.

    Examples
    --------
    >>> duration(3.2), duration(80), duration(7400), duration(200_000)
    ('3 s', '1 min 20 s', '2 h 3 min', '2 d 7 h')
    >>> duration(3.2, rough=True), duration(80, rough=True), duration(7400, rough=True), duration(100_000, rough=True)
    ('3.2 s', '1 min', '2 h 3 min', '27 h 47 min')
    """
    if not rough:
        whole = round(seconds)
        for large, small, size, unit in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
            if whole >= size:
                return f"{whole // size} {large} {whole % size // unit} {small}"
        return f"{whole} s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{hours // 24} d {hours % 24} h"
