"""`python -m edgemm` is the `edgemm` command."""

from edgemm.cli import main

main()
