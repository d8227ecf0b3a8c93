"""The command ``noisysgd``: one module for each subcommand, which imports PyTorch and the like only when it is run."""
