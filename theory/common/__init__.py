"""Foundations that the whole package shares: input checks, compilation, threads, descriptions, provenance."""
