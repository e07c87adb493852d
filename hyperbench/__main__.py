"""`python -m hyperbench`: the same as the command `hyperbench`."""

from hyperbench.cli import main

main()
