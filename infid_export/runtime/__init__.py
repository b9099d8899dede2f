"""Generates images from an engine folder; imports neither torch nor diffusers."""
