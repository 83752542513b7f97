"""`python -m lfdm`, and so `accelerate launch -m lfdm`: the command line."""

from lfdm.cli import main

main()
