"""The verb `denoise`."""

from __future__ import annotations

import argparse


def run_denoise(args: argparse.Namespace) -> None:
    """Restore photographs."""
    from pipelines.config import Config
    from pipelines.denoise import denoise, load
    from pipelines.tracking import uri_of

    registered = args.model.startswith("models:") or "@" in args.model
    uri = uri_of(Config().replace({"tracking.uri": args.tracking_uri or ""})) if registered else None
    written = denoise(
        args.source,
        args.target,
        model=load(args.model, uri=uri, device=args.device),
        sigma=args.sigma,
        add=args.add_noise,
        tile=args.tile,
    )
    print(f"{len(written)} restored: {args.target}")
