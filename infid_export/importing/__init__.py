"""Converts identity weights of other methods, once, into this package's identity file."""
