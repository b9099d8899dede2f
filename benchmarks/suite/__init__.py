"""How `gpu_suite.py` runs: its items, the device and its clock, children, results, goals and what is printed."""
