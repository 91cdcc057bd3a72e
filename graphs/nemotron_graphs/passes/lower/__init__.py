"""Passes that lower the dialect's ops to a target's own."""
