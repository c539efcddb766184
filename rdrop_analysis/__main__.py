"""`python -m rdrop_analysis` is `rdrop-analyze`."""

from rdrop_analysis.cli import main

if __name__ == "__main__":
    main()
