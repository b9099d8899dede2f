"""A procedural world of people: faces that stay recognizable across poses, clothes, places and styles."""
