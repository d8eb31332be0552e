"""`python -m dsconv` is the command `dsconv`."""

from dsconv.cli import main

main()
