"""The verb `restore`, of which `denoise` is another name."""

from __future__ import annotations

import argparse
import sys

from pipelines.text import one_line, show


def run_restore(args: argparse.Namespace) -> int:
    """Restore photographs. The exit code is 1 where some photographs of a folder were skipped."""
    from pipelines.restore import Incomplete, restore

    try:
        written = restore(
            args.source,
            args.target,
            model=args.model,
            uri=args.tracking_uri,
            device=args.device,
            sigma=args.sigma,
            add=args.add_noise,
            clip=not args.unclipped,
            trust=args.trust,
            tile=args.tile,
            format=args.format,
        )
    except Incomplete as error:
        show(one_line(error, limit=None))
        return 1
    except KeyboardInterrupt:
        show("d2sm: stopped; each photograph in the target is whole", file=sys.stderr)
        return 130
    added = ""
    if args.add_noise is not None:
        kind = "not clipped" if args.unclipped else "clipped and rounded as in the file; --unclipped adds it as it is"
        added = f" (noise of sigma {args.add_noise:g} added first, {kind})"
    show(f"{len(written)} restored: {args.target}{added}")
    return 0
