"""Engines of exported graphs: the manifest of an engine folder, building and running on each backend."""
