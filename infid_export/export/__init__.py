"""From the PyTorch reference to an engine folder: graphs, weights, parity, plan and build."""
