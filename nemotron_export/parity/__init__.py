"""Proof of a bundle's numbers: the reference by PyTorch, the check against it, and a verdict that needs no torch."""
