"""The command `infid-export`."""
