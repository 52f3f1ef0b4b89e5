"""`python -m pullpipe`."""

import sys

from pullpipe.cli import main

sys.exit(main())
