"""Engines for exported graphs: the manifest of an engine folder, and building and running on each backend."""
