"""Measurements of infid-export: the command `gpu_suite.py`, scripts that need no GPU, and the modules behind both.

Scripts import each other as `benchmarks.…`, so the repository's root has to be on the import path: an editable install
puts it there, and so does `PYTHONPATH=.:kernels:engines:training`. `benchmarks/kernels` has no `__init__.py`, like
`kernels` at the root: a script in this folder would import it as `kernels` instead of Hugging Face's package.
"""
