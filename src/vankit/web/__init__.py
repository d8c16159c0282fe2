"""The page of a service and of an exported site: plain files that work at any address, with nothing from elsewhere.

`page.js` asks `./backend.js`, which a service answers with `server.js`.
"""

from importlib.resources import files

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOLDER = files(__name__)

ASSETS: dict[str, str] = {
    name: _MEDIA_TYPES[ending]
    for name in sorted(each.name for each in _FOLDER.iterdir())
    if (ending := f".{name.rpartition('.')[2]}") in _MEDIA_TYPES
}
"""Media types by file name."""


def asset(name: str) -> bytes:
    """A file of the page.

    Raises:
        KeyError: it is not one of `ASSETS`.
    """
    if name not in ASSETS:
        raise KeyError(name)
    return (_FOLDER / name).read_bytes()
