"""The command line. One verb, one file; each parses, calls one library function, and renders."""

from quantlab.cli.main import main

__all__ = ["main"]
