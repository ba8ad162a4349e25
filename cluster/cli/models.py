"""The verbs `models list`, `models show`, `models promote` and `models compare`."""

from __future__ import annotations

import argparse

from pipelines.text import columns, show


def run_list(args: argparse.Namespace) -> None:
    """Every model and version, with two of its numbers."""
    from pipelines import registry

    rows = [["model", "version", "aliases", "recipe", "psnr.sigma25", "miou.sigma25"]]
    for record in registry.models(_uri(args.tracking_uri)):
        numbers = [_short(record.tags.get(name)) for name in ("psnr.sigma25", "miou.sigma25")]
        rows.append(
            [record.name, str(record.version), " ".join(record.aliases), record.tags.get("recipe", ""), *numbers]
        )
    show(columns(rows) if len(rows) > 1 else "no registered models")


def run_show(args: argparse.Namespace) -> None:
    """All that is recorded of a version."""
    from pipelines import registry

    record = registry.lookup(args.reference, uri=_uri(args.tracking_uri))
    facts = {"model": record.name, "version": record.version, "aliases": " ".join(record.aliases), "run": record.run_id}
    show(columns([[name, str(value)] for name, value in {**facts, **dict(sorted(record.tags.items()))}.items()]))


def run_promote(args: argparse.Namespace) -> None:
    """Point an alias at a version."""
    from pipelines import registry

    record = registry.promote(args.reference, args.alias, if_better=args.if_better, uri=_uri(args.tracking_uri))
    show(f"{record.name}@{args.alias} is now version {record.version}")


def run_compare(args: argparse.Namespace) -> None:
    """Two versions side by side."""
    from pipelines import registry

    uri = _uri(args.tracking_uri)
    rows = registry.compare(registry.lookup(args.a, uri=uri), registry.lookup(args.b, uri=uri))
    show(columns([list(rows[0]), *([_short(value) for value in row.values()] for row in rows)]))


def _uri(given: str | None) -> str:
    from pipelines.config import Config
    from pipelines.tracking import uri_of

    return uri_of(Config().replace({"tracking.uri": given or ""}))


def _short(value: object) -> str:
    """A number with four digits; any other value as it is."""
    try:
        return f"{float(str(value)):.4g}"
    except ValueError:
        return "" if value is None else str(value)
