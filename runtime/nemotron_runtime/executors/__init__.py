"""Executors: what runs a model's forward pass, one for each provider."""
