"""`python -m rexec` is the command line."""

from rexec.cli import main

if __name__ == "__main__":
    main()
