"""The page at /: one file that loads nothing else, sent with a policy that lets it do no more than ask this service."""

import base64
import functools
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse

_FILE = Path(__file__).with_name("page.html")


async def answer_page(request: Request) -> HTMLResponse:
    """Return the page."""
    page, policy = _read_page()
    return HTMLResponse(
        page,
        headers={
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",  # it holds no secret, but a newer service has a newer one
        },
    )


@functools.cache
def _read_page() -> tuple[str, str]:
    """Return the page and its policy: its own script and style run, and no other, wherever that would come from."""
    page = _FILE.read_text(encoding="utf-8")
    script, style = (_hash_element(page, name) for name in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"  # a text that is taken for markup is an error
    )
    return page, policy


def _hash_element(page: str, name: str) -> str:
    (text,) = re.findall(rf"<{name}[^>]*>(.*?)</{name}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
