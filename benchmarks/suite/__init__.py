"""How `gpu_suite.py` runs: its items, the device and its clock, child processes, results, goals and output."""
