"""Passes that bind inputs: weights, RoPE tables, fixed dims."""
