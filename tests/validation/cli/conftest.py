"""Shared by the tests of the command line."""

import signal

import pytest

from noisysgd.validation.cli import main as cli


@pytest.fixture
def call(capsys, monkeypatch):
    """``call(*arguments)`` runs the command in this process: (exit status, standard output, standard error)."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # handlers are for processes of their own

    def run(*arguments):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run
