"""How fast mixer_kernels is against the best of PyTorch: `python -m mixer_kernels bench`, or `pytest benchmarks`."""
