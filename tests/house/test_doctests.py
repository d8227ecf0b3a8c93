"""Every docstring example runs and prints what it says."""

import doctest
import importlib
import pkgutil

import matplotlib.pyplot as plt
import pytest

import noisysgd.simulators
import noisysgd.theory
import noisysgd.validation

PACKAGES = (noisysgd.theory, noisysgd.simulators, noisysgd.validation)
NAMES = [(package.__name__ + ".", package.__path__) for package in PACKAGES]
MODULES = [info.name for prefix, path in NAMES for info in pkgutil.walk_packages(path, prefix)]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    plt.switch_backend("agg")  # figures open no windows
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    plt.close("all")
    assert failures == 0


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_is_documented(package: object) -> None:
    for name in package.__all__:
        assert getattr(package, name).__doc__, f"{package.__name__}.{name} has no docstring"
