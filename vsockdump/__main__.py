"""``python -m vsockdump``."""

from vsockdump.cli import main

main()
