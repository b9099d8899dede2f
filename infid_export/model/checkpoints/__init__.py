"""Reads SDXL checkpoints: folders in diffusers' format, and single files of the original layout."""
