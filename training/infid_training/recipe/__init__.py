"""How the built-in demo model is made: every weight of it, from the world's pictures, on two CPU cores.

`infid-export train-demo` runs the stages in order; each can be stopped at any moment and goes on where it stood.
"""
