"""A bundle's parity as one HTML page."""

from __future__ import annotations

from nemotron_export.parity.report.page import render_html, write_html

__all__ = ["render_html", "write_html"]
