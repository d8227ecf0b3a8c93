"""Training real networks under the paper's protocol, measuring them, and comparing with theory.

Public names are listed in ``__init__.pyi``, for type checkers, and loaded from there when they are first used, so that
``noisysgd --help`` and whoever only reads a store need no PyTorch.
"""

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "sklearn"):
            raise
        remedy = "Install it with: pip install 'noisysgd[validation]'"
        raise ModuleNotFoundError(
            f"noisysgd.validation.{name} needs {error.name}. {remedy}", name=error.name
        ) from error
