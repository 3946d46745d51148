"""``python -m utils`` — the course's command line."""

import sys

from utils.course.cli import main

if __name__ == "__main__":
    sys.exit(main())
