"""`python -m rdrop_analysis` is `rdrop-analyze`; both begin here, so that Ctrl-C is heard while modules are loaded."""

import sys


def main() -> None:
    """Load the command line and run it."""
    try:
        from rdrop_analysis.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.stderr.write("Error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
