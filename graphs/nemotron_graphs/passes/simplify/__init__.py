"""Passes that simplify a graph and keep what it computes."""
