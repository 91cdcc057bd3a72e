"""Bundles: the folder, its manifest, its weights files."""
