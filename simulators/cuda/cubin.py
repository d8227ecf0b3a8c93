"""Machine code from the CUDA source, and the resources of a GPU that it takes. Nothing here needs a GPU.

The compiler is NVRTC, wherever it is (``nvrtc``). Drivers of its own major version of CUDA and of later ones take its
code.
"""

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

from noisysgd.simulators.cuda import nvrtc
from noisysgd.theory.common import checks

SOURCE = Path(__file__).with_name("simulate.cu")
KERNELS = (
    *(f"{name}_{state}" for name in ("start", "add_losses", "look_alive") for state in ("float64", "float32")),
    *(f"advance_{noise}_{name}" for noise in ("diagonal", "full") for name in ("float64", "float32", "mixed")),
    *(f"jump_{noise}_float64" for noise in ("diagonal", "full")),
    *(f"{name}_float64" for name in ("excess_losses", "least_squares")),
    *(f"{name}_float64" for name in ("network_losses", "network_batches", "network_gaussian")),
)
"""Names of all kernels: those that set, measure or check a state, then those that advance it."""
OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""No fused multiply–adds, no approximations, no flushing to zero: every operation is rounded once, as on the CPU."""

_FUNCTION = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for .*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """What one thread of a kernel needs.

    Attributes
    ----------
    registers : int
        How many it uses.
    stack, spills : int
        Bytes of local memory: of the stack frame, and of registers that are written to memory and read back.
    """

    registers: int
    stack: int
    spills: int


def resources(architecture: str) -> dict[str, Resources]:
    """Resources of every kernel for an architecture such as ``"sm_90"``.

    Raises
    ------
    ValueError
        If NVRTC is not installed, or refuses the source.
    """
    _, log = compiled(architecture)
    return {
        found["name"]: Resources(
            int(found["registers"]), int(found["stack"]), int(found["stores"]) + int(found["loads"])
        )
        for found in _FUNCTION.finditer(log)
    }


def version() -> str:
    """Version of NVRTC, such as ``"12.9"``."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(nvrtc.library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "")
    return f"{major.value}.{minor.value}"


def compiled(architecture: str, form: str = "CUBIN") -> tuple[bytes, str]:
    """The code of all kernels for an architecture, and the compiler's log.

    Parameters
    ----------
    architecture : str
        Such as ``"sm_90"``, or ``"compute_90"`` for PTX.
    form : {"CUBIN", "PTX"}
        Machine code, or the portable assembly it is made from.
    """
    compiler = nvrtc.library()
    program = ctypes.c_void_p()
    source = SOURCE.read_bytes()
    _check(compiler.nvrtcCreateProgram(ctypes.byref(program), source, SOURCE.name.encode(), 0, None, None), "")
    try:
        options = [*OPTIONS, f"--gpu-architecture={architecture}", "--ptxas-options=-v"]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = compiler.nvrtcCompileProgram(program, len(options), array)
        log = _text(compiler, program, "ProgramLog").rstrip(b"\0").decode()
        _check(status, log)
        return _text(compiler, program, form), log
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


def _check(status: int, log: str) -> None:
    remedy = "simulate.cu has to compile as it is shipped: please report this."
    checks.require(status == 0, "nvrtc", "status 0", (status, log), remedy)


def _text(compiler: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(compiler, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(compiler, f"nvrtcGet{what}")(program, buffer), what)
    return buffer.raw[: size.value]
