"""Measurements of infid-export: the command `gpu_suite.py`, scripts that need no GPU, and what both are made of.

Scripts import each other as `benchmarks.…`, so the repository's root has to be on the import path: an editable install
puts it there, and so does `PYTHONPATH=.:kernels:engines:training`. `benchmarks/kernels` has no `__init__.py`, like
`kernels` at the root: a script in this folder would find it as `kernels`, in place of Hugging Face's package.
"""
