"""The page as one self-contained document, with the policy that lets nothing else run in it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
STYLES: Final = ("style.css", "chat.css", "live.css")
# In the order in which they use each other: names at the top of one are known to those after it.
MODULES: Final = (
    "dom.js",
    "store.js",
    "api.js",
    "markdown.js",
    "tokens.js",
    "settings.js",
    "message.js",
    "conversation.js",
    "chart.js",
    "live.js",
    "main.js",
)
IMPORT = re.compile(r"^import\s[^;]*;\n", re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class)\b)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Document:
    body: bytes
    compressed: bytes  # gzip
    etag: str
    policy: str  # Content-Security-Policy


def load_document() -> Document:
    style = "".join(_read(name) for name in STYLES)
    script = joined([_read(name) for name in MODULES])
    text = _read("page.html").replace("/* style */", style).replace("/* script */", script)
    body = text.encode()
    return Document(
        body=body,
        # Without a time in it, so that all servers of a version say the same.
        compressed=gzip.compress(body, mtime=0),
        etag=f'"{hashlib.sha256(body).hexdigest()[:16]}"',
        policy=_policy(script, style),
    )


def joined(modules: list[str]) -> str:
    """ES modules as the one that they make up, each name at their top being used once."""
    return "".join(EXPORT.sub("", IMPORT.sub("", module)) for module in modules)


def _policy(script: str, style: str) -> str:
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
