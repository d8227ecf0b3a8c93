"""Registers and local memory of the CUDA kernels, as NVIDIA's compiler reports them; needs no GPU.

    python benchmarks/cuda_registers.py

Prints the table in docs/gpu.md.
"""

from noisysgd.simulators.cuda import cubin

ARCHITECTURES = ("sm_80", "sm_90")


def table() -> str:
    """A Markdown table: kernels by architectures."""
    found = {architecture: cubin.resources(architecture) for architecture in ARCHITECTURES}
    lines = [
        f"NVRTC {cubin.version()}, {' '.join(cubin.OPTIONS)}",
        "",
        "| kernel | " + " | ".join(f"{name}: registers | stack + spills, bytes" for name in ARCHITECTURES) + " |",
        "|---|" + "---|" * (2 * len(ARCHITECTURES)),
    ]
    for kernel in cubin.KERNELS:
        needs = [found[architecture][kernel] for architecture in ARCHITECTURES]
        cells = " | ".join(f"{each.registers} | {each.stack + each.spills}" for each in needs)
        lines.append(f"| `{kernel}` | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
