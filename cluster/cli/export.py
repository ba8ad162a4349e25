"""The verb `export`."""

from __future__ import annotations

import argparse

from pipelines.text import show


def run_export(args: argparse.Namespace) -> None:
    """Write a model as an ONNX file, and say how exact it is."""
    from pipelines.export import export
    from pipelines.networks.onnx_file import SIZES

    done = export(args.model, args.target, uri=args.tracking_uri, trust=args.trust)
    sizes = ", ".join(f"{images}x3x{height}x{width}" for images, height, width in SIZES)
    show(f"compared with the model in ONNX Runtime at {sizes}: largest difference {done.compared.difference:.1e}")
    show(f"(rounding to float32 changes the model itself by up to {done.compared.rounding:.1e})")
    show(done.path)
