"""The former name of `cluster.job_entrypoint`, which jobs submitted by earlier versions name."""

from __future__ import annotations

from cluster.job_entrypoint import run_process

if __name__ == "__main__":
    run_process()
