"""How the built-in demo model is trained: all of its weights, on the world's images, on two CPU cores.

`infid-export train-demo` runs the stages in order; each can be stopped at any time and resumes where it stopped.
"""
