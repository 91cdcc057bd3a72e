"""`python -m nemotron_export` is the command line."""

from nemotron_export.cli import main

if __name__ == "__main__":
    main()
