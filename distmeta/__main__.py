"""`python -m distmeta` is the command line, where no `distmeta` program is installed: in a job."""

from distmeta.cli import main

main()
