"""The command ``noisysgd demo``: theory, simulation and training of small networks, compared in one report."""
