"""`python -m svdata2vec`: the command line without its console script."""

import sys

from svdata2vec.cli import main

sys.exit(main())
