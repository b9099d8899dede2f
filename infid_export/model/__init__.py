"""The PyTorch reference: identity modules, two-stream attention, sampling steps and the pipeline."""
