"""The verb `denoise`."""

from __future__ import annotations

import argparse
import sys

from pipelines.text import one_line, show


def run_denoise(args: argparse.Namespace) -> int:
    """Restore photographs. The exit code is 1 where some photographs of a folder were skipped."""
    from pipelines.denoise import Incomplete, denoise

    try:
        written = denoise(
            args.source,
            args.target,
            model=args.model,
            uri=args.tracking_uri,
            device=args.device,
            sigma=args.sigma,
            add=args.add_noise,
            tile=args.tile,
            format=args.format,
        )
    except Incomplete as error:
        show(one_line(error, limit=None))
        return 1
    except KeyboardInterrupt:
        show("d2sm: stopped; each photograph in the target is whole", file=sys.stderr)
        return 130
    show(f"{len(written)} restored: {args.target}")
    return 0
