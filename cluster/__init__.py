"""Launching: the command line and clusters.

import cluster

job = cluster.submit(["train", "--recipe", "ffdnet_d2sm_cpu", "data.root=/data", "train.storage=/storage"])
job.follow()
"""

from cluster.jobs import Job, submit

__all__ = ["Job", "submit"]
