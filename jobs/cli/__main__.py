"""`python -P -m jobs.cli`: the command without its installed script."""

from jobs.cli import main

main()
