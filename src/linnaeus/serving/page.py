"""The page at /: three files, sent as they are, that ask the same routes as any client."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FILES = {
    "/": ("index.html", "text/html"),
    "/ui/page.js": ("page.js", "text/javascript"),
    "/ui/style.css": ("style.css", "text/css"),
}
PATHS = tuple(_FILES)
# Nothing from elsewhere and nothing written into the page; pictures are those that the browser itself holds.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_routes() -> list[Route]:
    """Return a route for each file of the page."""
    folder = files("linnaeus.serving").joinpath("ui")
    contents = {path: (folder.joinpath(name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    async def page(request: Request) -> Response:
        data, kind = contents[request.scope["path"]]
        headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
        return Response(data, headers=headers, media_type=kind)

    return [Route(path, page, include_in_schema=False) for path in PATHS]
