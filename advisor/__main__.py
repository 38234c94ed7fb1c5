"""`python -m advisor`: the command line."""

from advisor.cli.commands import main

main()
