"""What all of theory rests on: checks of input, compiled code, threads, descriptions, provenance."""
