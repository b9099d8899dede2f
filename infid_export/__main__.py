"""`python -m infid_export` is the command `infid-export`."""

from infid_export.cli.main import entry_point

entry_point()
