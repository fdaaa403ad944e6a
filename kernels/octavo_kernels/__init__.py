"""Triton kernels of the inference server, each beside its plain-torch twin."""
