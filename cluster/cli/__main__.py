"""`python -m cluster.cli`, the same as `d2sm`."""

from __future__ import annotations

import sys

from cluster.cli.main import main

sys.exit(main())
