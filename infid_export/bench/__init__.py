"""Measuring the speed of an engine folder, beside what else is installed. Needs neither torch nor diffusers itself."""
