"""Whether pictures stay as good: the paper's ablations, and the scores that exported engines keep."""
