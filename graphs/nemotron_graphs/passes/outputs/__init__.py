"""Passes that change what a graph gives."""
