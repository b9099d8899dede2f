"""Speed of an engine folder, beside other software.

Only `others` needs torch and diffusers.
"""

PROMPT = "a portrait photo of a person in the rain, oil painting"
SEED = 1
