"""Image, versions, ports and paths. The files in `cluster/files` repeat them; a test checks that they agree."""

from __future__ import annotations

from d2sm import __version__

PYTHON = "3.11"  # of the image, on every node
RAY = "2.60.0"  # of the image; the version in pins.txt
IMAGE = f"d2sm:{__version__}"  # what `docker build` makes; push it where the cluster's nodes can pull it from

GCS_PORT = 6379  # where nodes and drivers join (RAY_ADDRESS)
DASHBOARD_PORT = 8265  # where jobs are submitted
CLIENT_PORT = 10001  # Ray Client; unused here, but Ray opens it
TRACKING_PORT = 5000  # an MLflow server

LOOPBACK = "127.0.0.1"
DATA = "/data"  # where the files mount the photographs, read only
STORAGE = "/storage"  # where they mount what runs write: checkpoints, results
USER = 1000  # the image's user, not root
