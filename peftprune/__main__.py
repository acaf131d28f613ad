"""`python -m peftprune`, where the console script is not on the path."""

from peftprune.cli.app import main

if __name__ == "__main__":
    main()
