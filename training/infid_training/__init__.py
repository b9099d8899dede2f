"""Identity-enhanced training of the identity modules."""
