"""Image quality: the paper's ablations, and whether exported engines keep the scores."""
