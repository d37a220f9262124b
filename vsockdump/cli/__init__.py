"""The command line: a tcpdump-like command, and one module for each subcommand."""

from __future__ import annotations
