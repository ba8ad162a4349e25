"""The verb `denoise`."""

from __future__ import annotations

import argparse

from pipelines.text import show


def run_denoise(args: argparse.Namespace) -> None:
    """Restore photographs."""
    from pipelines import registry
    from pipelines.denoise import denoise

    written = denoise(
        args.source,
        args.target,
        model=registry.open_model(args.model, uri=args.tracking_uri, device=args.device),
        sigma=args.sigma,
        add=args.add_noise,
        tile=args.tile,
    )
    show(f"{len(written)} restored: {args.target}")
