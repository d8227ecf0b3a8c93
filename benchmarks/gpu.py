"""What one GPU does with all of this library: tests, simulators, training, curvature, and a small sweep. One command.

    python benchmarks/gpu.py --out DIR                                   # 515 seconds on the GPU
    PYTHONPATH=.typing python benchmarks/gpu.py --out DIR --seconds 300  # from a checkout, without an installation
    python benchmarks/gpu.py --out DIR --device cpu --tiny               # all of it at toy size, where there is no GPU

The stages, and the seconds that each may take of 515 (`SECONDS`; other totals scale them):

| stage       | seconds  | finds                                                                                     |
|-------------|----------|-------------------------------------------------------------------------------------------|
| environment | 20       | versions, the device, clocks, and the compiler of the kernels                             |
| tests       | 90       | whether ``pytest -m gpu`` passes                                                          |
| simulators  | 70       | whether CPU and GPU have the same bits; updates per second                                |
| training    | 130      | images per second by precision, normalisation and launch; small runs side by side         |
| curvature   | 50       | whether CPU and GPU agree on λ_max; what it costs for WRN-16-4                            |
| campaign    | the rest | a sweep over learning rates, batch sizes and momentum, on the best data set that is there |

Every stage is a process with a deadline, and DIR/STAGE.json is written anew, under another name that is then changed,
as soon as there is a new row: a crash or a stop costs what was not measured yet, of that stage alone. A row that could
not be measured says why, as ``skipped`` or ``error``. What a stage leaves unused goes to the campaign, of which
DIR/campaign.nc is the Sweep. DIR/log.txt has all output. Then ``python benchmarks/gpu_tables.py DIR`` makes the tables
of docs/gpu.md.

The exit status is 0 if every stage delivered: it did not crash, measured something, and none of its rows is an error.
Tests that fail, networks that do not fit into memory, and stages that were stopped at their deadline, are results.

Data sets are looked for below ``$NOISYSGD_DATA``; see `DATASETS`.
"""

import argparse
import concurrent.futures
import contextlib
import datetime
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # each stage imports what it needs: a library that is missing or broken then costs that stage alone
    from torch import nn

    from noisysgd.theory import NoisyQuadratic
    from noisysgd.validation import ImageDataset, Measurement, TrainConfig
    from noisysgd.validation.training.loop import TrainingRun

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 515.0
SECONDS = {"environment": 20.0, "tests": 90.0, "simulators": 70.0, "training": 130.0, "curvature": 50.0}
"""Seconds that a stage may take of `TOTAL`. The campaign, which comes last, has what is left."""
STAGES = (*SECONDS, "campaign")
LAST_SECONDS = 8.0
"""Of `TOTAL`, what is kept for writing the Sweep after the last stage."""
GRACE = 5.0
"""Seconds after its deadline at which a stage that has not ended by itself is killed."""

DATASETS = ("folder:cifar10-jpeg", "fashion-mnist", "digits")
"""Data sets for curvature and campaign: the first one that is there. The first is CIFAR-10 as JPEG of quality 75."""
NO_GPU, NO_TIME, NO_MEMORY = "no GPU", "no time", "out of memory"


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Parameters
    ----------
    modes, bits_steps, bits_replicas : int
        Of a simulated quadratic, and of the ensembles whose bits are compared.
    replicas, configurations : tuple of int
        Of the ensembles that are timed.
    simulator_seconds, update_seconds, process_seconds : float
        About how long one ensemble, one kind of update, and runs side by side are timed.
    normals : int
        Numbers in the array that libraries fill.
    images, side : int
        Random images to train on, and their pixels in a row.
    depth, width : int
        Of the Wide-ResNet.
    batches : tuple of int
        Batch sizes, of which the paper's ghost batch of 64 is the smallest.
    processes : tuple of int
        Numbers of small runs side by side.
    small_examples, curvature_examples, curvature_steps : int
        Examples behind the Hessian of the small network and of the Wide-ResNet, and updates before the second
        measurement of the latter.
    octaves : tuple of int
        Learning rates of the campaign around the middle of each curve, in octaves, in the order they are run in.
    workers : int
        Runs of the campaign side by side.
    """

    modes: int
    bits_steps: int
    bits_replicas: int
    replicas: tuple[int, ...]
    configurations: tuple[int, ...]
    simulator_seconds: float
    normals: int
    images: int
    side: int
    depth: int
    width: int
    batches: tuple[int, ...]
    update_seconds: float
    processes: tuple[int, ...]
    process_seconds: float
    small_examples: int
    curvature_examples: int
    curvature_steps: int
    octaves: tuple[int, ...]
    workers: int


FULL = Sizes(
    modes=64,
    bits_steps=300,
    bits_replicas=2000,
    replicas=(2**10, 2**13, 2**16, 2**19),
    configurations=(1, 4, 16),
    simulator_seconds=1.0,
    normals=2**27,
    images=50_000,
    side=32,
    depth=16,
    width=4,
    batches=(64, 256, 1024, 4096),
    update_seconds=1.2,
    processes=(1, 4, 16),
    process_seconds=3.0,
    small_examples=256,
    curvature_examples=2048,
    curvature_steps=300,
    octaves=(0, 1, -1, 2, -2, 3, -3),
    workers=4,
)
TINY = Sizes(
    modes=8,
    bits_steps=20,
    bits_replicas=300,
    replicas=(128, 256),
    configurations=(1, 2),
    simulator_seconds=0.02,
    normals=2**16,
    images=512,
    side=8,
    depth=10,
    width=1,
    batches=(64, 128),
    update_seconds=0.05,
    processes=(1, 2),
    process_seconds=0.1,
    small_examples=64,
    curvature_examples=64,
    curvature_steps=3,
    octaves=(0, 1),
    workers=1,
)


@dataclass(frozen=True)
class Order:
    """What a stage is asked to do: where to write, on which device, at which size, until which time of the clock."""

    out: Path
    device: str
    tiny: bool
    deadline: float

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device != "cpu"

    @property
    def sizes(self) -> Sizes:
        """How much to measure."""
        return TINY if self.tiny else FULL

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()


# The file of a stage


def write_json(path: Path, content: object) -> None:
    """Write a file that is whole at any moment: under another name, which is changed at the end."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, default=str, ensure_ascii=False), encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


class Rows:
    """The rows of a stage, in its file as soon as they are there.

    Parameters
    ----------
    order : Order
    stage : str
        The driver has begun the file of this stage; rows are added to it.
    """

    def __init__(self, order: Order, stage: str) -> None:
        self._order, self._path = order, order.out / f"{stage}.json"
        self._content = read_json(self._path)

    def add(self, what: str, **values: Any) -> None:
        """Add one row: what was measured, its settings and its results."""
        row = {"what": what, **values}
        self._content["rows"].append(row)
        write_json(self._path, self._content)
        print(json.dumps(row, default=str, ensure_ascii=False), flush=True)

    def attempt(
        self,
        what: str,
        measure: Callable[[], dict[str, Any]],
        *,
        gpu_only: bool = False,
        seconds: float = 2.0,
        **settings: Any,
    ) -> None:
        """Add the row that `measure` finds; or say why there is none, and go on.

        Parameters
        ----------
        what : str
        measure : callable
            Returns the results.
        gpu_only : bool
            Whether it needs a GPU.
        seconds : float
            The time that it has to have.
        **settings
            Further entries of the row.
        """
        if gpu_only and not self._order.on_gpu:
            return self.add(what, **settings, skipped=NO_GPU)
        if self._order.left < seconds:
            return self.add(what, **settings, skipped=NO_TIME)
        try:
            found = measure()
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":
                return self.add(what, **settings, skipped=NO_MEMORY)
            trace = traceback.format_exc()
            print(trace, flush=True)
            return self.add(what, **settings, error=f"{type(error).__name__}: {error}"[:600], trace=trace[-1500:])
        finally:
            release(self._order.device)
        return self.add(what, **settings, **found)


def release(device: str) -> None:
    """Give back the GPU memory of what has been measured."""
    gc.collect()
    if device != "cpu" and "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def wait(device: str) -> None:
    """Wait until the GPU has done all that it was asked for."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


def elapsed(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# Environment


def environment_stage(order: Order, rows: Rows) -> None:
    """Find out what all other numbers were measured with."""
    rows.attempt("versions", versions, seconds=0)
    rows.attempt("CPU", processor, seconds=0)
    if shutil.which("nvidia-smi") is None and order.on_gpu:
        rows.add("nvidia-smi", skipped="no nvidia-smi")
    else:
        rows.attempt("nvidia-smi", system_management, gpu_only=True, seconds=0)
    rows.attempt("GPU", functools.partial(graphics_processor, order.device), gpu_only=True)
    rows.attempt("kernels", functools.partial(compiled_kernels, order.on_gpu))
    rows.attempt("kernels on the device", loaded_kernels, gpu_only=True)


def versions() -> dict[str, Any]:
    """Return versions of Python and of every library that takes part."""
    names = {"numpy", "scipy", "numba", "xarray", "torch", "cupy", "hypothesis", "pytest", "pillow", "scikit-learn"}
    found = importlib.metadata.packages_distributions()
    names = {found.get(name, [name])[0] for name in names}  # CuPy's distributions are named by their version of CUDA
    return {"python": sys.version.split()[0]} | {name: version_of(name) for name in sorted(names)}


def version_of(distribution: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> dict[str, Any]:
    """Return the name of the processor and its number of cores."""
    from noisysgd.theory.common.parallel import usable_cores

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"name": names[0] if names else "unknown", "cores": os.cpu_count(), "usable_cores": usable_cores()}


def graphics_processor(device: str) -> dict[str, Any]:
    """Return the GPU as torch sees it."""
    import torch

    seen = torch.cuda.get_device_properties(device)
    return {
        "name": seen.name,
        "capability": f"{seen.major}.{seen.minor}",
        "multiprocessors": seen.multi_processor_count,
        "memory_bytes": seen.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def system_management() -> dict[str, Any]:
    """Return what nvidia-smi says of driver, clocks and power."""
    asked = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.max.mem", "power.limit", "memory.total")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    return dict(zip(asked, map(str.strip, printed.splitlines()[0].split(",")), strict=True))


def compiled_kernels(on_gpu: bool) -> dict[str, Any]:
    """Return what NVIDIA's compiler makes of the kernels: the H100's code where there is no GPU."""
    from noisysgd.simulators.cuda import cubin

    architecture = "sm_90"
    if on_gpu:
        import torch

        architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
    start = time.perf_counter()
    table = cubin.resources(architecture)
    return {
        "nvrtc": cubin.version(),
        "architecture": architecture,
        "compile_s": time.perf_counter() - start,
        "kernels": len(table),
        "spilling": [name for name, needs in table.items() if needs.stack or needs.spills],
        "most_registers": max(needs.registers for needs in table.values()),
    }


def loaded_kernels() -> dict[str, Any]:
    """Return what the GPU says of the kernels that it was given."""
    from noisysgd.simulators.cuda import cubin, device

    here = device.device()
    return {
        "multiprocessors": here.multiprocessors,
        "memory_of_a_call": here.memory,
        "chunks_side_by_side": here.side_by_side,
        "registers": {name: here.registers(name) for name in cubin.KERNELS},
    }


# Tests


def tests_stage(order: Order, rows: Rows) -> None:
    """Run the tests that need a GPU. Without one, see that some are found and skipped."""
    if importlib.util.find_spec("pytest") is None:
        return rows.add("pytest -m gpu", skipped="no pytest")
    rows.attempt("pytest -m gpu", functools.partial(run_tests, order))
    return None


def run_tests(order: Order) -> dict[str, Any]:
    """Return counts, exit status and the end of the output; what there is of them if time is up first."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        start = time.perf_counter()
        with output.open("w") as file:
            command = test_command(order, Path(folder) / "pytest")
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=test_environment(order)
            )
            try:
                status: int | None = process.wait(max(order.left - 3, 1))
            except subprocess.TimeoutExpired:
                status = None
                process.kill()
                process.wait()
        text = output.read_text(encoding="utf-8", errors="replace")
    print(text, flush=True)
    row = {"exit": status, "seconds": time.perf_counter() - start, "counts": counts(text), "tail": text[-3000:]}
    return row if order.on_gpu else row | {"skipped": NO_GPU}


def test_command(order: Order, basetemp: Path) -> list[str]:
    """Return the command: six processes where pytest-xdist is there; a single file where there is no GPU."""
    # pytest-benchmark, if it is there, warns under xdist, and warnings are errors here.
    plain = ["-q", "-p", "no:benchmark", "-p", "no:cacheprovider", f"--basetemp={basetemp}", "--durations=5"]
    # A file that cannot be read there, for want of a library, is an error, but does not keep the others from running.
    plain.append("--continue-on-collection-errors")
    workers = ["-n", "6"] if importlib.util.find_spec("xdist") is not None and order.on_gpu else []
    some = [] if order.on_gpu else ["tests/validation/training/test_late.py"]
    return [sys.executable, "-m", "pytest", *plain, "-m", "gpu", *workers, *some]


def test_environment(order: Order) -> dict[str, str]:
    """Return the environment: on a GPU a skipped test has failed; nothing is inherited of a pytest that runs this."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return kept | ({"NOISYSGD_REQUIRE_GPU": "1"} if order.on_gpu else {})


def counts(output: str) -> dict[str, int]:
    r"""Return the numbers of tests in pytest's last line.

    >>> counts("...\n3 passed, 1 failed in 2.10s")
    {'passed': 3, 'failed': 1}
    """
    last = [line for line in output.splitlines() if re.search(r"\d+ \w+.* in [\d.]+s", line)]
    found = re.findall(r"(\d+) (passed|failed|errors?|skipped|deselected|xfailed)", last[-1]) if last else []
    return {kind: int(number) for number, kind in found}


# Simulators


def simulators_stage(order: Order, rows: Rows) -> None:
    """Compare bits, then measure updates per second, beside what libraries need for the random numbers alone."""
    sizes, backend = order.sizes, "cuda" if order.on_gpu else "cpu"
    settings: dict[str, Any]
    if not order.on_gpu:
        rows.add("bits of CPU and GPU", skipped=NO_GPU)
    for problem, options in itertools.product(("diagonal", "full"), BITS):
        settings = {"problem": problem, "options": options, "backends": ["cpu", backend]}
        rows.attempt("bits", functools.partial(same_bits, sizes, **settings), **settings)
    for replicas, dtype in itertools.product(sizes.replicas, PRECISIONS):
        settings = {"replicas": replicas, "dtype": dtype, "backend": backend}
        rows.attempt("updates", functools.partial(ensemble_speed, sizes, **settings), **settings)
    for dtype in PRECISIONS:
        settings = {"replicas": sizes.replicas[-1] // 16, "dtype": dtype, "backend": "cpu"}
        rows.attempt("updates on all cores", functools.partial(ensemble_speed, sizes, **settings), **settings)
    for count in sizes.configurations:
        settings = {"configurations": count, "replicas": sizes.replicas[0], "backend": backend}
        rows.attempt("configurations", functools.partial(ensemble_speed, sizes, **settings), **settings)
    for dtype in ("float32", "float64"):
        torch_fills = functools.partial(torch_normals, order.device, sizes.normals, dtype)
        rows.attempt("normals", torch_fills, library="torch", dtype=dtype)
        cupy_fills = functools.partial(cupy_normals, sizes.normals, dtype)
        rows.attempt("normals", cupy_fills, library="cupy", dtype=dtype, gpu_only=True)
    rows.attempt("time in kernels", functools.partial(kernel_time, sizes), gpu_only=True)


PRECISIONS = ("float64", "float32", "mixed")
BITS: dict[str, dict[str, Any]] = {
    **{dtype: {"dtype": dtype} for dtype in PRECISIONS},
    "jump": {"dynamics": "jump"},
    "student_t": {"noise": "student_t"},
}
"""Options of ensembles whose bits are compared."""


def quadratic(kind: str, modes: int) -> "NoisyQuadratic":
    """Return a noisy quadratic with diagonal noise, or with a full covariance."""
    import numpy as np

    from noisysgd import theory

    if kind == "diagonal":
        return theory.power_law(modes + 1)
    factor = np.random.default_rng(1).standard_normal((modes, modes))
    return theory.NoisyQuadratic(np.linspace(0.5, 1.5, modes), factor @ factor.T / modes, initial_variance=0.5)


def same_bits(sizes: Sizes, problem: str, options: str, backends: list[str]) -> dict[str, Any]:
    """Return whether two backends give the same losses and standard errors, byte by byte."""
    from noisysgd import simulators, theory

    modes = quadratic(problem, sizes.modes // 2)
    settings: dict[str, Any] = {"learning_rate": [0.05, 0.3], "batch_size": 4, "momentum": 0.9, "record": 7} | BITS[
        options
    ]
    schedule = theory.half_then_decay(sizes.bits_steps)
    one, other = (
        simulators.simulate(modes, schedule, replicas=sizes.bits_replicas, backend=backend, **settings)
        for backend in backends
    )
    differing = [name for name in one.data_vars if one[name].values.tobytes() != other[name].values.tobytes()]
    return {"identical": not differing, "differing": differing, "numbers": sum(v.size for v in one.values())}


def ensemble_speed(
    sizes: Sizes, replicas: int, backend: str, dtype: str = "float64", configurations: int = 1
) -> dict[str, Any]:
    """Return updates of single modes per second, from as many steps as take about the time that `sizes` allows."""
    import numpy as np

    from noisysgd import simulators, theory

    problem = theory.power_law(sizes.modes)
    settings: dict[str, Any] = {
        "learning_rate": np.geomspace(0.01, 0.1, configurations),
        "batch_size": 8,
        "momentum": 0.9,
    }

    def run(steps: int) -> object:
        schedule = theory.constant(steps)
        return simulators.simulate(problem, schedule, **settings, replicas=replicas, backend=backend, dtype=dtype)

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


def torch_normals(device: str, count: int, dtype: str, repetitions: int = 5) -> dict[str, Any]:
    """Return how many normal numbers per second torch fills an array with."""
    import torch

    array = torch.empty(count, dtype=getattr(torch, dtype), device=device)
    return normals_per_second(array.normal_, functools.partial(wait, device), count, repetitions)


def cupy_normals(count: int, dtype: str, repetitions: int = 5) -> dict[str, Any]:
    """Return the same for CuPy's default generator."""
    import cupy

    fill = functools.partial(cupy.random.default_rng(0).standard_normal, count, dtype=dtype)
    return normals_per_second(fill, cupy.cuda.Device().synchronize, count, repetitions)


def normals_per_second(
    fill: Callable[[], object], finish: Callable[[], None], count: int, repetitions: int
) -> dict[str, Any]:
    """Return the speed of filling an array again and again, after a first time that is not counted."""

    def work() -> None:
        for _ in range(repetitions):
            fill()
        finish()

    fill()
    finish()
    return {"count": count, "numbers_per_s": repetitions * count / elapsed(work)}


# Training


def training_stage(order: Order, rows: Rows) -> None:
    """Measure images per second of whole updates, whether runs repeat, and small runs side by side."""
    from noisysgd.validation.training.inputs import resident

    sizes = order.sizes
    data = resident(random_images(sizes.images, sizes.side), order.device, channels_last=True)
    for variant, gpu_only in variants(order):
        measure = functools.partial(update_speed, order, data, **variant)
        rows.attempt("updates", measure, gpu_only=gpu_only, seconds=4 * sizes.update_seconds, **variant)
    for settings in ({}, {"captured": False}, {"deterministic": False}):
        settings = {"captured": True, "deterministic": True} | settings
        measure = functools.partial(repeated, order, data, **settings)
        rows.attempt("repeated", measure, gpu_only=not all(settings.values()), **settings)
    with side_by_side(order, max(sizes.processes)) as crew:
        for count in sizes.processes:
            rows.attempt("small runs", functools.partial(small_runs, order, crew, count), processes=count)


def variants(order: Order) -> list[tuple[dict[str, Any], bool]]:
    """List the kinds of updates that are timed, and whether they need a GPU.

    All precisions come first, then what differs in one thing from the precision that is usual.
    """
    usual = {"norm": "ghost", "captured": order.on_gpu, "deterministic": True}
    usual["precision"] = "tf32" if order.on_gpu else "float32"
    batches = order.sizes.batches
    changes: list[tuple[dict[str, Any], tuple[int, ...], bool]] = [
        ({"precision": "tf32"}, batches, True),
        ({"precision": "bfloat16"}, batches, False),
        ({"precision": "float32"}, batches, False),
        ({"norm": "torch"}, batches[1:], False),  # of 64 examples ghost batch norm makes one group, and is torch's
        ({"captured": False}, batches, True),
        ({"deterministic": False}, batches, True),
    ]
    return [(usual | change | {"batch_size": size}, gpu_only) for change, some, gpu_only in changes for size in some]


def random_images(examples: int, side: int) -> "ImageDataset":
    """Random images in three colours, and random labels."""
    import torch

    from noisysgd.validation import ImageDataset

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(examples, 3, side, side, generator=generator)
    labels = torch.randint(10, (examples,), generator=generator)
    return ImageDataset("random", images, labels, images[:256], labels[:256], classes=10, provenance="random numbers")


def wide_resnet(order: Order, batch_size: int, **changes: Any) -> "TrainConfig":
    """Return the paper's network and optimizer, at a learning rate so small that random labels do no harm."""
    from noisysgd.validation import TrainConfig

    settings: dict[str, Any] = {
        "learning_rate": 1e-4,
        "momentum": 0.9,
        "steps": 10**6,
        "ghost_batch_size": 64,
        "augment": True,
    }
    settings |= {"depth": order.sizes.depth, "width": order.sizes.width, "device": order.device}
    return TrainConfig(batch_size=batch_size, **settings | changes)


def with_torch_norms(model: "nn.Module") -> None:
    """Put torch's batch norm in the place of every ghost batch norm, with the parameters that are there."""
    from torch import nn

    from noisysgd.validation import GhostBatchNorm2d

    for name, layer in list(model.named_children()):
        if isinstance(layer, GhostBatchNorm2d):
            plain = nn.BatchNorm2d(layer.features, eps=layer.eps, momentum=layer.momentum).to(layer.weight.device)
            plain.weight, plain.bias = layer.weight, layer.bias
            setattr(model, name, plain)
        else:
            with_torch_norms(layer)


def update_speed(
    order: Order,
    data: "ImageDataset",
    *,
    batch_size: int,
    precision: str,
    norm: str,
    captured: bool,
    deterministic: bool,
) -> dict[str, Any]:
    """Return time and memory of an update of the Wide-ResNet."""
    from noisysgd.validation.training.loop import TrainingRun

    before = reset_peak(order.device)
    chosen = {"precision": precision, "cuda_graph": captured, "deterministic": deterministic}
    run = TrainingRun(wide_resnet(order, batch_size, **chosen), data)
    if norm == "torch":
        with_torch_norms(run.model)
    return time_updates(run, order.sizes.update_seconds) | peak(order.device, before) | {"divergence": run.divergence}


def time_updates(run: "TrainingRun", seconds: float) -> dict[str, Any]:
    """Return the time of an update, and how much of it the host takes to ask for it, after some that warm up."""
    device = run.config.device

    def some(count: int) -> None:
        for _ in range(count):
            run.advance()

    def to_the_end(count: int) -> None:
        some(count)
        run.settle()
        wait(device)

    to_the_end(4)
    # At most two blocks of batches: what the host draws for the next one is then part of the time.
    count = max(3, min(512, round(seconds / elapsed(lambda: to_the_end(1)))))
    took = elapsed(lambda: to_the_end(count))
    asked = []
    for _ in range(5):
        asked.append(elapsed(lambda: some(2)) / 2)
        wait(device)
    size = run.config.batch_size
    return {
        "steps": count,
        "ms_per_step": 1e3 * took / count,
        "host_ms": 1e3 * min(asked),
        "images_per_s": size * count / took,
    }


def reset_peak(device: str) -> int:
    """Count the peak of GPU memory from here on, and return the bytes that are taken already."""
    if device == "cpu":
        return 0
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: str, before: int) -> dict[str, Any]:
    """Return the most bytes of GPU memory that were taken besides those `before`."""
    if device == "cpu":
        return {"peak_bytes": None}
    import torch

    return {"peak_bytes": torch.cuda.max_memory_allocated(device) - before}


def repeated(
    order: Order, data: "ImageDataset", captured: bool, deterministic: bool, steps: int = 20
) -> dict[str, Any]:
    """Return whether a run taken twice has the same parameters, and those of the captured, deterministic run."""
    precision, steps = ("float32", 2) if order.tiny else ("bfloat16", steps)

    def end(**chosen: bool) -> str:
        from noisysgd.validation.training.loop import TrainingRun

        config = wide_resnet(order, order.sizes.batches[0], learning_rate=0.05, precision=precision, **chosen)
        run = TrainingRun(config, data)
        for _ in range(steps):
            run.advance()
        run.settle()
        return digest(run.model)

    usual, *twice = end(), *(end(cuda_graph=captured, deterministic=deterministic) for _ in range(2))
    return {"same_twice": twice[0] == twice[1], "same_as_usual": twice[0] == usual, "steps": steps}


def digest(model: "nn.Module") -> str:
    """Return a hash of all parameters, bit by bit."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        found.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


class SmallRun:
    """A process with a small network, which trains when it is asked to.

    Parameters
    ----------
    order : Order
    """

    def __init__(self, order: Order) -> None:
        context = multiprocessing.get_context("spawn")
        self._order = order
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=small_run, args=(theirs, order.device), daemon=True)
        self._process.start()
        theirs.close()  # so that a process that has ended can be noticed
        self.ready = False

    def get_ready(self) -> None:
        """Wait until the process has taken its first update."""
        self.ready = self.ready or self.answer() == "ready"

    def ask(self, start: float, seconds: float) -> None:
        """Have it train from a time of the clock on, for some seconds."""
        self._connection.send((start, seconds))

    def answer(self) -> Any:
        """Return what the process says; ``TimeoutError`` if it says nothing until the deadline."""
        if not self._connection.poll(max(self._order.left - 1, 0)):
            raise TimeoutError("expected a word of a small run before the deadline, got none")
        return self._connection.recv()

    def end(self) -> None:
        """End the process."""
        self._process.kill()


def small_run(connection: Any, device: str) -> None:
    """Be such a process: say "ready", and then, for each (start, seconds), how many updates took how many seconds."""
    from noisysgd.validation import TrainConfig, load_dataset
    from noisysgd.validation.training.loop import TrainingRun

    config = TrainConfig(learning_rate=1e-3, batch_size=64, momentum=0.9, steps=10**6, device=device)
    run = TrainingRun(config, load_dataset("digits"))
    run.advance()
    wait(device)
    connection.send("ready")
    while True:
        start, seconds = connection.recv()
        time.sleep(max(start - time.time(), 0))
        first, began = run.step, time.perf_counter()
        while time.perf_counter() - began < seconds:
            for _ in range(8):
                run.advance()
            wait(device)
        connection.send((run.step - first, time.perf_counter() - began))


@contextlib.contextmanager
def side_by_side(order: Order, count: int) -> Iterator[list[SmallRun]]:
    """Within the ``with`` block there are `count` small runs, which idle unless they are asked to train."""
    crew: list[SmallRun] = []
    try:
        for _ in range(count):
            crew.append(SmallRun(order))
        yield crew
    finally:
        for run in crew:
            run.end()


def small_runs(order: Order, crew: list[SmallRun], count: int) -> dict[str, Any]:
    """Return updates per second of `count` small runs at once, the others being idle."""
    for run in crew:
        run.get_ready()
    start = time.time() + 0.2
    for run in crew[:count]:
        run.ask(start, order.sizes.process_seconds)
    speeds = [steps / seconds for steps, seconds in (run.answer() for run in crew[:count])]
    return {"updates_per_s": sum(speeds), "slowest": min(speeds), "batch_size": 64, "network": "WRN-10-1, digits"}


# Curvature


def curvature_stage(order: Order, rows: Rows) -> None:
    """Measure curvature: of a small network on both sides, and of the Wide-ResNet before and during training."""
    for place, dtype in (("cpu", "float64"), ("cpu", "float32"), ("gpu", "float32")):
        device = order.device if place == "gpu" else "cpu"
        measure = functools.partial(small_curvature, device, dtype, order.sizes.small_examples)
        rows.attempt("small network", measure, place=place, dtype=dtype, gpu_only=place == "gpu")
    kept: dict[str, Any] = {}
    for steps in (0, order.sizes.curvature_steps):
        measure = functools.partial(wide_curvature, order, kept, steps)
        rows.attempt("Wide-ResNet", measure, after=steps, examples=order.sizes.curvature_examples, seconds=6.0)


QUICK: dict[str, Any] = {"units": 32, "products": 4, "eigenvalues": 1, "probes": 0, "sharpness_batches": 4}
"""Options of measurements that are after λ_max."""


@functools.cache
def small_network() -> "nn.Module":
    """Return a network with 78 000 parameters, trained on the digits for 20 updates on the CPU."""
    from noisysgd.validation import TrainConfig, load_dataset
    from noisysgd.validation.training.loop import TrainingRun

    run = TrainingRun(TrainConfig(learning_rate=0.2, batch_size=64, steps=20), load_dataset("digits"))
    while not run.finished:
        run.advance()
    return run.model


def small_curvature(device: str, dtype: str, examples: int) -> dict[str, Any]:
    """Return what is measured of the small network."""
    import copy

    import torch

    from noisysgd.validation import load_dataset, measure

    model = copy.deepcopy(small_network()).to(device, getattr(torch, dtype))
    found = measure(model, load_dataset("digits"), **QUICK, curvature_examples=examples, rtol=1e-3, max_products=60)
    return summary(found)


def wide_curvature(order: Order, kept: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train until `steps` and return what is measured there; `kept` keeps the run from one call to the next."""
    from noisysgd.validation import load_dataset, measure
    from noisysgd.validation.training.loop import TrainingRun

    if not kept:
        name, _ = prepare()
        data = load_dataset(name)
        config = wide_resnet(order, order.sizes.batches[0], learning_rate=0.05, augment=False, dataset=name)
        kept.update(name=name, data=data, run=TrainingRun(config, data))
    run = kept["run"]
    while run.step < steps and not run.finished:
        run.advance()
    run.settle()
    wait(order.device)
    before = reset_peak(order.device)
    examples = order.sizes.curvature_examples
    found = measure(run.model, kept["data"], **QUICK, curvature_examples=examples)
    row = {"dataset": kept["name"], "network": f"WRN-{order.sizes.depth}-{order.sizes.width}"}
    return row | summary(found) | peak(order.device, before) | {"divergence": run.divergence}


def summary(found: "Measurement") -> dict[str, Any]:
    """Return the numbers of a measurement that are of interest here."""
    return {
        "lambda_max": found.lambda_max.value,
        "residual": found.lambda_max.residual,
        "converged": found.lambda_max.converged,
        "trace_noise": found.trace_noise.value,
        "trace_noise_stderr": found.trace_noise.stderr,
        "products": found.hessian_products,
        "parameters": found.parameters,
        "seconds": found.seconds,
    }


# Campaign

CENTRES = {64: 0.5, 128: 0.5, 256: 1.0, 1024: 2.0, 4096: 4.0}
"""Effective learning rate in the middle of the curve of each batch size."""
MOMENTA = (0.9, 0.0)
MOST_AT_ONCE = 1024
"""Examples that go through the network at once: several runs share the memory of the GPU."""
LONGER = 10_000
"""Size of a training set below which a run gets more epochs, to have some hundreds of updates as well."""


def campaign_stage(order: Order, rows: Rows) -> None:
    """Train as many runs as there is time for, several at once, and add the record of each as it ends."""
    spawn = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(order.sizes.workers, mp_context=spawn)
    try:
        # Every process reads the data set for itself, all at the same time, and keeps it.
        ready = [pool.submit(prepare) for _ in range(order.sizes.workers)]
        name, examples = ready[0].result(timeout=max(order.left, 1))
        rows.add("data set", dataset=name, examples=examples, workers=order.sizes.workers)
        futures = {pool.submit(train_one, config): config for config in campaign(order, name, examples)}
        for future in concurrent.futures.as_completed(futures, timeout=max(order.left - 1, 1)):
            rows.add("run", **record_of(future, futures[future]))
        rows.add("end", finished=True)
    except TimeoutError:
        rows.add("end", finished=False)
        # The runs under way are given up: the driver ends all processes of a stage.
        sys.stdout.flush()
        os._exit(0)
    pool.shutdown()


def record_of(future: concurrent.futures.Future[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a run that has ended; or what it was, and the error that ended it."""
    error = future.exception()
    return future.result() if error is None else {"asked": config, "error": f"{type(error).__name__}: {error}"[:600]}


def prepare() -> tuple[str, int]:
    """Return the first of `DATASETS` that can be read, and the size of its training set."""
    from noisysgd.validation import TrainConfig, load_dataset

    for name in DATASETS:
        try:
            TrainConfig(learning_rate=0.1, batch_size=64, steps=1, dataset=name)
            return name, load_dataset(name).train_size
        except (FileNotFoundError, ImportError, ValueError) as error:
            print(f"{name} is not used: {error}", flush=True)
    raise ValueError(f"data set: expected one of {DATASETS}, got none. Set NOISYSGD_DATA to its folder.")


def campaign(order: Order, dataset: str, examples: int) -> list[dict[str, Any]]:
    """List the runs, the middle of all curves first and then outwards: an early stop leaves whole, shorter curves."""
    from noisysgd.validation import TrainConfig

    big, sizes = examples >= LONGER, order.sizes
    shared: dict[str, Any] = {"dataset": dataset, "depth": sizes.depth, "width": sizes.width, "ghost_batch_size": 64}
    shared |= {"device": order.device, "precision": "bfloat16" if order.on_gpu else "float32"}
    shared |= {"epochs": 1.0 if order.tiny else 2.0 if big else 12.0, "augment": dataset == DATASETS[0]}
    listed = []
    for octave, size, momentum in itertools.product(sizes.octaves, sizes.batches, MOMENTA):
        if size > examples:
            continue
        rate = round(CENTRES[size] * 2.0**octave * (1 - momentum), 12)  # 1 − 0.9 is not quite 0.1
        pieces: dict[str, Any] = {"micro_batch_size": MOST_AT_ONCE} if size > MOST_AT_ONCE else {}
        config = TrainConfig(learning_rate=rate, momentum=momentum, batch_size=size, **shared, **pieces)
        listed.append(config.as_dict())
    return listed


def train_one(config: dict[str, Any]) -> dict[str, Any]:
    """Train one run of the campaign and return its record."""
    from noisysgd.validation import TrainConfig, train

    record = train(TrainConfig.from_dict(config))
    # The learning curve belongs here, as record["losses"], once train() offers the losses of minibatches: evaluating
    # anything more would cost runs.
    return record | {"ended": time.time()}


def write_sweep(out: Path) -> bool:
    """Write DIR/campaign.nc from the runs in DIR/campaign.json, and return whether there were any."""
    from noisysgd import theory

    runs = [row for row in read_json(out / "campaign.json")["rows"] if row["what"] == "run" and "config" in row]
    if not runs:
        return False
    varied = ("batch_size", "learning_rate", "momentum", "seed")
    metrics = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "steps", "seconds")
    records = [{name: run["config"][name] for name in varied} | run for run in runs]
    shared = {name: value for name, value in runs[0]["config"].items() if name not in (*varied, "micro_batch_size")}
    sweep = theory.sweep_from_records(records, source="training", metrics=metrics, configuration=shared)
    theory.save_sweep(sweep, out / "campaign.nc")
    return True


# The driver


def drive(order: Order, seconds: float, chosen: list[str]) -> int:
    """Run the stages one after the other, and return the exit status."""
    order.out.mkdir(parents=True, exist_ok=True)
    scale = seconds / TOTAL
    delivered = []
    for stage in chosen:
        share = SECONDS.get(stage, TOTAL) * scale
        deadline = min(time.time() + share, order.deadline - LAST_SECONDS * scale)
        delivered.append(run_stage(Order(order.out, order.device, order.tiny, deadline), stage, seconds))
    if "campaign" in chosen:
        delivered.append(attempt_sweep(order))
    files = sorted(path.name for path in order.out.iterdir())
    print(f"{seconds - order.left:.0f} s, {', '.join(files)}", flush=True)
    return 0 if all(delivered) else 1


def attempt_sweep(order: Order) -> bool:
    """Write the Sweep of the campaign, and return whether there is one."""
    try:
        written = write_sweep(order.out)
    except Exception:
        traceback.print_exc()
        return False
    print(f"campaign.nc: {'written' if written else 'no runs'}", flush=True)
    return written


def run_stage(order: Order, stage: str, seconds: float) -> bool:
    """Run one stage in a process of its own, say in its file how it ended, and return whether it delivered."""
    path, start = order.out / f"{stage}.json", time.time()
    about = {"device": order.device, "tiny": order.tiny, "seconds": seconds}
    about["started"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(path, {"stage": stage, "about": about, "ended": "running", "rows": []})
    print(f"{stage}: at most {order.left:.0f} s", flush=True)
    with (order.out / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"\n=== {stage}, {about['started']}\n")
        log.flush()
        ended = outcome(order, stage, log)
    path.with_name(f".{path.name}.partial").unlink(missing_ok=True)  # of a stage that was ended while it wrote
    content = read_json(path) | {"ended": ended, "took": time.time() - start}
    write_json(path, content)
    rows = content["rows"]
    failed = [row["what"] for row in rows if "error" in row]
    skipped = sum("skipped" in row for row in rows)
    print(f"  {ended}: {content['took']:.0f} s, {len(rows)} rows, {skipped} skipped, errors: {failed}", flush=True)
    measured = any(row.get("skipped") != NO_TIME for row in rows)
    return measured and not failed and ended in ("complete", "stopped at its deadline")


def outcome(order: Order, stage: str, log: Any) -> str:
    """Wait for the process of a stage, end it if it is late, and say how it ended."""
    size = ["--tiny"] if order.tiny else []
    command = [sys.executable, str(Path(__file__).resolve()), "--stage", stage, "--deadline", str(order.deadline)]
    command += ["--out", str(order.out.resolve()), "--device", order.device, *size]
    # A session of its own, so that whatever the stage has started can be ended with it.
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=stage_environment()
    )
    try:
        status = process.wait(max(order.left, 0) + GRACE)
        return "complete" if status == 0 else f"crashed, exit status {status}"
    except subprocess.TimeoutExpired:
        return "stopped at its deadline"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stage_environment() -> dict[str, str]:
    """Return the environment of a stage: one thread for operations on the CPU, paths that hold in every folder."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    path = os.pathsep.join(
        str(Path(part).resolve()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part
    )
    return threads | os.environ | {"PYTHONIOENCODING": "utf-8"} | ({"PYTHONPATH": path} if path else {})


def stages(text: str) -> list[str]:
    """Return the stages that are named, in their order."""
    named = text.split(",")
    unknown = sorted(set(named) - set(STAGES))
    if unknown:
        raise argparse.ArgumentTypeError(f"expected names among {', '.join(STAGES)}, got {', '.join(unknown)}")
    return [stage for stage in STAGES if stage in named]


def main() -> int:
    """Drive all stages; or be one of them, if the driver asks for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=TOTAL, help=f"time for everything, {TOTAL:.0f} by default")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what to measure")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see whether everything runs")
    parser.add_argument("--only", type=stages, default=list(STAGES), metavar="STAGE,…", help="some of the stages")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    order = Order(given.out, given.device, given.tiny, given.deadline or time.time() + given.seconds)
    if given.stage is None:
        return drive(order, given.seconds, given.only)
    globals()[f"{given.stage}_stage"](order, Rows(order, given.stage))
    return 0


if __name__ == "__main__":
    sys.exit(main())
