"""Simulators: whether CPU and GPU have the same bits, and updates per second."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpu_stages.rows import NO_GPU, Order, Rows, elapsed, wait
from gpu_stages.sizes import KINDS, PRECISIONS, Sizes
from noisysgd import simulators, theory

BITS: dict[str, dict[str, Any]] = {
    **{dtype: {"dtype": dtype} for dtype in PRECISIONS},
    "jump": {"dynamics": "jump"},
    "student_t": {"noise": "student_t"},
}
"""Options of ensembles whose bits are compared."""


def measure_all(order: Order, rows: Rows) -> None:
    """Compare bits, then measure updates per second, beside what libraries need for the random numbers alone."""
    sizes, backend = order.sizes, "cuda" if order.on_gpu else "cpu"
    if not order.on_gpu:
        rows.add("bits of CPU and GPU", skipped=NO_GPU)
    compare = functools.partial(same_bits, sizes)
    for problem, options in itertools.product(KINDS, BITS):
        rows.attempt("bits", compare, problem=problem, options=options, backends=["cpu", backend])
    speed = functools.partial(ensemble_speed, sizes)
    for replicas, dtype in itertools.product(sizes.replicas, PRECISIONS):
        rows.attempt("updates", speed, replicas=replicas, dtype=dtype, backend=backend)
    for dtype in PRECISIONS:
        rows.attempt("updates on all cores", speed, replicas=sizes.replicas[-1] // 16, dtype=dtype, backend="cpu")
    for count in sizes.configurations:
        rows.attempt("configurations", speed, configurations=count, replicas=sizes.replicas[0], backend=backend)
    fill = functools.partial(normals_per_second, order)
    for dtype, library in itertools.product(("float32", "float64"), ("torch", "cupy")):
        rows.attempt("normals", fill, library=library, dtype=dtype, gpu_only=library == "cupy")
    rows.attempt("time in kernels", lambda: kernel_time(sizes), gpu_only=True)


def quadratic(kind: str, modes: int) -> theory.NoisyQuadratic:
    """Return a noisy quadratic with diagonal noise, or with a full covariance."""
    if kind == "diagonal":
        return theory.power_law(modes + 1)
    factor = np.random.default_rng(1).standard_normal((modes, modes))
    return theory.NoisyQuadratic(np.linspace(0.5, 1.5, modes), factor @ factor.T / modes, initial_variance=0.5)


def same_bits(sizes: Sizes, problem: str, options: str, backends: list[str]) -> dict[str, Any]:
    """Return whether two backends give the same losses and standard errors, byte by byte."""
    modes, schedule = quadratic(problem, sizes.modes // 2), theory.half_then_decay(sizes.bits_steps)
    settings: dict[str, Any] = {"learning_rate": [0.05, 0.3], "batch_size": 4, "momentum": 0.9, "record": 7}
    settings |= {"replicas": sizes.bits_replicas} | BITS[options]
    one, other = (simulators.simulate(modes, schedule, backend=backend, **settings) for backend in backends)
    differing = [name for name in one.data_vars if one[name].values.tobytes() != other[name].values.tobytes()]
    return {"identical": not differing, "differing": differing, "numbers": sum(v.size for v in one.values())}


def ensemble_speed(
    sizes: Sizes, replicas: int, backend: str, dtype: str = "float64", configurations: int = 1
) -> dict[str, Any]:
    """Return updates of single modes per second, from as many steps as take about the time that `sizes` allows."""
    problem, rates = theory.power_law(sizes.modes), np.geomspace(0.01, 0.1, configurations)
    settings: dict[str, Any] = {"learning_rate": rates, "batch_size": 8, "momentum": 0.9}
    settings |= {"replicas": replicas, "backend": backend, "dtype": dtype}

    def run(steps: int) -> object:
        return simulators.simulate(problem, theory.constant(steps), **settings)

    run(1)  # compiles
    steps, seconds = 8, elapsed(lambda: run(8))
    # What a call costs besides its steps has to be small beside them.
    while seconds < sizes.simulator_seconds / 4:
        steps *= 4
        seconds = elapsed(functools.partial(run, steps))
    updates = configurations * replicas * sizes.modes * steps
    return {"modes": sizes.modes, "steps": steps, "seconds": seconds, "updates_per_s": updates / seconds}


@contextlib.contextmanager
def timed_launches() -> Iterator[list[tuple[str, Any, Any]]]:
    """Within the ``with`` block, each launch of a kernel is listed: its name, and events before and after it."""
    import cupy

    from noisysgd.simulators.cuda.device import CupyDevice

    listed: list[tuple[str, Any, Any]] = []
    launch = CupyDevice.launch

    def timed(self: CupyDevice, kernel: str, *arguments: Any) -> None:
        before, after = cupy.cuda.Event(), cupy.cuda.Event()
        before.record()
        launch(self, kernel, *arguments)
        after.record()
        listed.append((kernel, before, after))

    CupyDevice.launch = timed  # type: ignore[assignment, method-assign]
    try:
        yield listed
    finally:
        CupyDevice.launch = launch  # type: ignore[method-assign]


def kernel_time(sizes: Sizes) -> dict[str, Any]:
    """Return the time that the kernels of an ensemble take, and how often each is launched.

    Chunks of replicas run side by side, and so do their kernels: all together they may take longer than the ensemble.
    """
    import cupy

    ensemble_speed(sizes, sizes.replicas[-2], "cuda")
    with timed_launches() as listed:
        seconds = elapsed(lambda: ensemble_speed(sizes, sizes.replicas[-2], "cuda"))
    cupy.cuda.Device().synchronize()
    spent = [(name, cupy.cuda.get_elapsed_time(before, after) / 1e3) for name, before, after in listed]
    names = sorted({name for name, _ in spent})
    return {
        "replicas": sizes.replicas[-2],
        "seconds": seconds,
        "kernels_per_second": sum(took for _, took in spent) / seconds,
        "launches": {name: sum(name == other for other, _ in spent) for name in names},
        "kernel_s": {name: sum(took for other, took in spent if name == other) for name in names},
    }


def normals_per_second(order: Order, library: str, dtype: str, repetitions: int = 5) -> dict[str, Any]:
    """Return the speed of filling an array again and again, after a first time that is not counted."""
    count = order.sizes.normals
    fill, finish = (torch_normals if library == "torch" else cupy_normals)(order.device, count, dtype)

    def work(times: int) -> None:
        for _ in range(times):
            fill()
        finish()

    work(1)
    return {"count": count, "numbers_per_s": repetitions * count / elapsed(lambda: work(repetitions))}


def torch_normals(device: str, count: int, dtype: str) -> tuple[Callable[[], object], Callable[[], None]]:
    """Return what has torch fill an array with normal numbers, and what waits for it."""
    import torch

    return torch.empty(count, dtype=getattr(torch, dtype), device=device).normal_, lambda: wait(device)


def cupy_normals(_: str, count: int, dtype: str) -> tuple[Callable[[], object], Callable[[], None]]:
    """Return the same for CuPy's default generator."""
    import cupy

    draw = functools.partial(cupy.random.default_rng(0).standard_normal, count, dtype=dtype)
    return draw, cupy.cuda.Device().synchronize
