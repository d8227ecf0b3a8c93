"""Why a run trains with one thread unless told otherwise: its time with one and two, on a free and on a busy machine.

    python benchmarks/bench_threads.py

Elapsed seconds of 60 updates at B = 64 of WRN-10-1 on the digits, in turns; then again beside another process that
keeps one core busy. A small operation is shared by all threads and waits for the last of them: if that one waits for a
core, so do all.
"""

import subprocess
import sys
import time

from noisysgd.validation import TrainConfig, train

CONFIG = TrainConfig(learning_rate=0.1, batch_size=64, steps=60)
BUSY = "while True: pass"


def seconds(threads: int) -> float:
    """How long the run takes."""
    start = time.perf_counter()
    train(CONFIG, threads=threads)
    return time.perf_counter() - start


def main() -> None:
    """Print a line for each state of the machine."""
    train(CONFIG.with_(steps=2))
    for where in ("as it is", "beside one busy process"):
        busy = subprocess.Popen([sys.executable, "-c", BUSY]) if where != "as it is" else None
        try:
            found = {threads: [] for threads in (1, 2)}
            for _ in range(3):
                for threads, times in found.items():
                    times.append(seconds(threads))
        finally:
            if busy is not None:
                busy.kill()
                busy.wait()
        print(f"{where}: " + "; ".join(f"{n} threads {min(t):.1f} to {max(t):.1f} s" for n, t in found.items()))


if __name__ == "__main__":
    main()
