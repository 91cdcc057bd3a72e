"""The command line, `nemotron-export`: thin commands, one file each; needs neither torch, onnx nor triton to start."""

from __future__ import annotations

from nemotron_export.cli.app import app, main

__all__ = ["app", "main"]
