"""Run as ``python -m kevip``."""

from kevip.cli import main

main()
