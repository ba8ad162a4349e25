"""A real S3-compatible server on this machine, in this process: moto's, which speaks S3 over HTTP on loopback."""

from __future__ import annotations

import logging
from typing import Self

import pyarrow.fs
from moto.server import ThreadedMotoServer

KEY, SECRET = "planted-key", "planted-7f0c4e1b9a"  # looked for in what a run leaves behind
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip


class S3:
    """A bucket named "bucket"."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)

    def uri(self, path: str = "") -> str:
        return f"s3://bucket{path}?endpoint_override=http%3A%2F%2F127.0.0.1%3A{self.port}&region=us-east-1"

    def __enter__(self) -> Self:
        self.server.start()
        _, self.port = self.server.get_host_and_port()
        self.files = pyarrow.fs.S3FileSystem(
            access_key=KEY, secret_key=SECRET, endpoint_override=f"http://127.0.0.1:{self.port}", region="us-east-1",
            allow_bucket_creation=True,
        )  # fmt: skip
        self.files.create_dir("bucket")
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()

    def names(self, folder: str) -> list[str]:
        """All files below a folder of the bucket."""
        found = self.files.get_file_info(pyarrow.fs.FileSelector(f"bucket/{folder}", recursive=True))
        return sorted(info.path.removeprefix(f"bucket/{folder}/") for info in found if info.is_file)

    def read(self, path: str) -> bytes:
        with self.files.open_input_stream(f"bucket/{path}") as stream:
            return bytes(stream.read())
