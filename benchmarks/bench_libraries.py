"""Speed of the simulator beside other libraries, in one run, all on the same core.

    make bench-libraries

An update is one coordinate of one replica in one step: a normal drawn and the state advanced. D = 64 scalar linear
chains × 8192 replicas, no momentum, float64 unless said otherwise. As a ceiling, bare normals of `mkl_random`, its
fastest generator and method, and those that the simulator's own kernel draws without using them. A library that is
not installed is left out, and named.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")})
os.environ["JAX_ENABLE_X64"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np

from noisysgd import simulators, theory
from noisysgd.simulators.ensembles.tiles import LANES
from noisysgd.simulators.randomness import philox

DIM, REPLICAS, STEPS, REPETITIONS = 64, 8192, 200, 5
RATE, BATCH = 0.1, 8
PROBLEM = theory.power_law(DIM)
CURVATURE = PROBLEM.eigenvalues[:, None]
DEVIATION = np.sqrt(PROBLEM.noise_diagonal * PROBLEM.noise_factor(BATCH))[:, None]


def rate_of(run: Callable[[int], object], steps: int = STEPS) -> float:
    """Updates per second, the best of some repetitions after one that compiles."""
    run(steps)
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        run(steps)
        times.append(time.perf_counter() - start)
    return DIM * REPLICAS * steps / min(times)


def simulator(dtype: str) -> Callable[[int], object]:
    """Ours."""
    run = {"learning_rate": RATE, "batch_size": BATCH, "replicas": REPLICAS, "threads": 1, "dtype": dtype}
    return lambda steps: simulators.simulate(PROBLEM, theory.constant(steps), **run)


def numpy_loop(dtype: Any) -> Callable[[int], object]:
    """The obvious vectorised simulation."""
    generator = np.random.default_rng(0)
    curvature, deviation, rate = CURVATURE.astype(dtype), DEVIATION.astype(dtype), dtype(RATE)

    def run(steps: int) -> float:
        theta = generator.standard_normal((DIM, REPLICAS), dtype=dtype)
        for _ in range(steps):
            theta -= rate * (curvature * theta + deviation * generator.standard_normal(theta.shape, dtype=dtype))
        return float(0.5 * (curvature * theta**2).sum(axis=0).mean())

    return run


def jax_scan(implementation: str) -> Callable[[int], object]:
    """``lax.scan`` over keys, compiled."""
    import jax
    import jax.numpy as jnp

    def update(theta: Any, key: Any) -> tuple[Any, None]:
        noise = jax.random.normal(key, theta.shape, theta.dtype)
        return theta - RATE * (CURVATURE * theta + DEVIATION * noise), None

    def whole(key: Any, steps: int) -> Any:
        first, rest = jax.random.split(key)
        theta = jax.random.normal(first, (DIM, REPLICAS), jnp.float64)
        theta, _ = jax.lax.scan(update, theta, jax.random.split(rest, steps))
        return (0.5 * CURVATURE * theta**2).sum(axis=0).mean()

    compiled = jax.jit(whole, static_argnums=1)
    key = jax.random.key(0, impl=implementation)
    return lambda steps: float(compiled(key, steps))


def diffrax_euler(path: str) -> Callable[[int], object]:
    """The same chains as an SDE, dθ = −Λθ dt + √(εF/B) dW with time step ε, by ``diffeqsolve``."""
    import diffrax
    import jax
    import jax.numpy as jnp

    shape = jax.ShapeDtypeStruct((DIM, REPLICAS), jnp.float64)
    scale = np.sqrt(RATE) * DEVIATION * np.ones((DIM, REPLICAS))

    def whole(key: Any, steps: int) -> Any:
        first, rest = jax.random.split(key)
        end = RATE * steps
        if path == "unsafe":
            brownian = diffrax.UnsafeBrownianPath(shape, rest)
        else:
            brownian = diffrax.VirtualBrownianTree(0.0, end, tol=RATE / 2, shape=shape, key=rest)
        import lineax

        noise = diffrax.ControlTerm(lambda t, y, args: lineax.DiagonalLinearOperator(scale), brownian)
        terms = diffrax.MultiTerm(diffrax.ODETerm(lambda t, y, args: -CURVATURE * y), noise)
        start = jax.random.normal(first, shape.shape, shape.dtype)
        solution = diffrax.diffeqsolve(
            terms,
            diffrax.Euler(),
            0.0,
            end,
            RATE,
            start,
            saveat=diffrax.SaveAt(t1=True),
            adjoint=diffrax.ForwardMode() if path == "unsafe" else diffrax.DirectAdjoint(),
            max_steps=steps + 2,
        )
        return (0.5 * CURVATURE * solution.ys[0] ** 2).sum(axis=0).mean()

    compiled = jax.jit(whole, static_argnums=1)
    return lambda steps: float(compiled(jax.random.key(0), steps))


def mkl_normals() -> tuple[str, float]:
    """The fastest bare normals of mkl_random."""
    import mkl_random

    found = {}
    for generator in ("SFMT19937", "MT2203", "PHILOX4X32X10", "MCG59", "MT19937"):
        for method in ("BoxMuller", "BoxMuller2", "ICDF"):
            state = mkl_random.MKLRandomState(0, brng=generator)
            size = (DIM, REPLICAS)

            def run(steps: int, state: Any = state, size: Any = size, method: str = method) -> None:
                for _ in range(steps):
                    state.standard_normal(size, method=method)

            found[f"{generator}, {method}"] = rate_of(run, 20)
    best = max(found, key=lambda name: found[name])
    return best, found[best]


def own_normals() -> float:
    """Normals drawn by the simulator's kernel and thrown away, tile by tile."""
    z = np.empty((DIM, LANES))

    def run(steps: int) -> None:
        for step in range(steps):
            for replica in range(0, REPLICAS, LANES):
                philox.fill_normals(z, np.uint64(0), np.uint64(1), np.uint64(replica), np.uint64(step))

    return rate_of(run, STEPS // 4)


def main() -> None:
    """Print the table."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    print(f"D = {DIM}, {REPLICAS} replicas, {STEPS} steps, one core, load {os.getloadavg()[0]:.1f}; M updates/s")
    ours = rate_of(simulator("float64"))
    print(f"noisysgd, float64                {ours / 1e6:6.1f}")
    rows: dict[str, Callable[[], Callable[[int], object]]] = {"NumPy loop, float64": lambda: numpy_loop(np.float64)}
    if importlib.util.find_spec("jax"):
        rows |= {f"JAX lax.scan, {name}": lambda n=name: jax_scan(n) for name in ("threefry2x32", "rbg", "unsafe_rbg")}
    if importlib.util.find_spec("diffrax"):
        rows |= {f"diffrax Euler, {name}": lambda n=name: diffrax_euler(n) for name in ("unsafe", "virtual tree")}
    for name in ("jax", "diffrax", "mkl_random"):
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: left out")
    for name, make in rows.items():
        rate = rate_of(make(), STEPS // 4)  # none of them has an overhead that more steps would hide
        print(f"{name:32s} {rate / 1e6:6.1f}   noisysgd is {ours / rate:.1f} × as fast")
    single, loop = rate_of(simulator("float32")), rate_of(numpy_loop(np.float32), STEPS // 4)
    print(f"noisysgd, float32                {single / 1e6:6.1f}")
    print(f"NumPy loop, float32              {loop / 1e6:6.1f}   noisysgd is {single / loop:.1f} × as fast")
    bare = own_normals()
    print(f"own normals, not used            {bare / 1e6:6.1f}   updates run at {ours / bare:.2f} of that")
    if importlib.util.find_spec("mkl_random"):
        name, rate = mkl_normals()
        print(f"mkl_random, bare normals         {rate / 1e6:6.1f}   updates run at {ours / rate:.2f} of that ({name})")


if __name__ == "__main__":
    main()
