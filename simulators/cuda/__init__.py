"""The CUDA backend: one source for all dynamics, and what compiles, launches and feeds it."""
