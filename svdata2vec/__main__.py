"""`python -m svdata2vec`: the command line without its console script."""

import sys

from svdata2vec.cli.main import main

sys.exit(main())
