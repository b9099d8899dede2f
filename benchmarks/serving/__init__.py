"""Measurements of `infid-export serve`: load, overhead, batching, a long mixed load, and hostile requests.

Every subcommand starts the server as a process of its own on a free port of this machine, and stops it at the end.
"""
