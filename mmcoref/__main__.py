"""`python -m mmcoref` is `mmcoref`."""

import sys

from mmcoref.cli import main

sys.exit(main())
