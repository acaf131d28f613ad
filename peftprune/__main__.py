"""`python -m peftprune`, where the console script is not on the path."""

import sys

if not sys.flags.safe_path:
    # Python puts the working directory first, where a file such as evaluate.py hides the installed module of its name.
    sys.path.append(sys.path.pop(0))

from peftprune.cli.app import main

if __name__ == "__main__":
    main()
