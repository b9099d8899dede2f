"""A procedural world of people: faces that stay the same person over poses, clothes, places and styles."""
