"""The engine: requests, the generation loop, results."""
