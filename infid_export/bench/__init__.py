"""Measuring the speed of an engine folder, beside what else is installed. Needs neither torch nor diffusers itself."""

PROMPT = "a portrait photo of a person in the rain, oil painting"
SEED = 1
