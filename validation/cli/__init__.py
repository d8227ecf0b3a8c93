"""The command ``noisysgd``, a module for each of its commands; what is heavy is imported by the command that runs."""
