"""A user's code that ends the program, or says that Ctrl-C was pressed, is an error that is told, wherever it runs."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch import nn

from noisysgd.validation import RunStore, TrainConfig, run_one, train
from noisysgd.validation.networks.factory import imported
from noisysgd.validation.networks.users_code import is_interrupt, not_ending_the_program
from noisysgd.validation.sweeps.trained import Sweep

CONFIG = TrainConfig(learning_rate=0.1, batch_size=32, steps=2, model="own", ghost_batch_size=1)
ENDS = [SystemExit(), SystemExit(0), SystemExit("bye"), GeneratorExit(), asyncio.CancelledError()]


def network(config, data):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def raising(error):
    def function(*_):
        raise error

    return function


@pytest.mark.parametrize("end", ENDS, ids=repr)
def test_a_factory_an_observer_and_a_layer_cannot_end_the_program(end):
    with pytest.raises(RuntimeError, match=r"own: expected a result or an error, got .*Raise a ValueError") as caught:
        train(CONFIG, model=raising(end))
    assert caught.value.__cause__ is end
    with pytest.raises(RuntimeError, match="own: expected a result"):
        train(CONFIG, model=network, observe=raising(end), observe_at=(1,))
    model = network(None, None)
    model.register_forward_hook(raising(end))
    with pytest.raises(RuntimeError, match="own: expected a result"):
        train(CONFIG, model=model)


@pytest.mark.parametrize("end", ["SystemExit", "SystemExit(3)", "GeneratorExit"])
def test_a_module_cannot_end_the_program_when_it_is_imported(tmp_path, monkeypatch, end):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ends_at_import.py").write_text(f"raise {end}\n")
    with pytest.raises(ValueError, match=r"expected an importable 'module:factory', got .*Exit: .*Name a function"):
        imported("ends_at_import:make")


def test_ctrl_c_stays_an_interrupt():
    interrupt = KeyboardInterrupt()
    for call in (
        lambda: train(CONFIG, model=raising(interrupt)),
        lambda: train(CONFIG, model=network, observe=raising(interrupt), observe_at=(0,)),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()


def test_where_no_signal_arrives_an_interrupt_is_an_error(monkeypatch):
    """In a thread other than the main one, and in a worker, which ignores Ctrl-C."""
    with ThreadPoolExecutor(1) as executor:
        error = executor.submit(train, CONFIG, model=raising(KeyboardInterrupt())).exception()
    assert isinstance(error, RuntimeError)
    import signal

    assert is_interrupt(KeyboardInterrupt())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert not is_interrupt(KeyboardInterrupt())


def test_ordinary_errors_pass_as_they_are():
    with pytest.raises(KeyError, match="x"), not_ending_the_program("it"):
        raise KeyError("x")


@pytest.mark.parametrize("end", ENDS[:4], ids=repr)
def test_work_of_ones_own_cannot_end_a_sweep(tmp_path, end):
    sweep = Sweep(base=CONFIG.with_(batch_size=32), batch_sizes=[32], momenta=[0.0], exponents=(-3,), seeds=1, keep=1)
    store = RunStore(tmp_path)
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(RuntimeError, match=r"the run: expected a result or an error, got \w*Exit\("),
    ):
        sweep.run(store, executor, work=raising(end))


def test_a_run_in_a_store_that_ends_the_program_is_no_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ends_when_made.py").write_text("import sys\ndef make(config, data):\n    sys.exit()\n")
    config = CONFIG.with_(model="ends_when_made:make")
    store = RunStore(tmp_path / "runs")
    with pytest.raises(RuntimeError, match=r"ends_when_made:make: expected a result or an error, got SystemExit"):
        run_one(store, config)
    assert store.read(config) is None
    assert "ends_when_made" in sys.modules
