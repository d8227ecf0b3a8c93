"""The stages of benchmarks/gpu.py, a module each with `measure_all`, and what they and the tables share."""
