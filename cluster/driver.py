"""The former name of `cluster.job_entrypoint`, which jobs submitted by earlier versions name."""

from __future__ import annotations

import sys

from cluster.job_entrypoint import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
