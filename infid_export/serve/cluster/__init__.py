"""Several servers for the same clients: what they tell each other, and Ray."""
