"""``python -m dllama`` is the command ``dllama``."""

import sys

from dllama.cli import main

sys.exit(main())
