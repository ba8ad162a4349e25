"""Text shown to people: one line, short, without a secret."""

from __future__ import annotations

import re


def redact(text: str) -> str:
    """The text without the user:password@ (or token@, or ?password=) of any URI in it."""
    text = re.sub(r"://[^/\s]\S*@", "://***@", text)  # greedy: a password may hold an @ or a / itself
    return re.sub(r"(?i)([?&](?:\w*password|token)=)[^&\s]+", r"\1***", text)


def one_line_of(text: str, limit: int = 300) -> str:
    text = redact(" ".join(text.split()))
    return text if len(text) <= limit else f"{text[:limit]} ..."
