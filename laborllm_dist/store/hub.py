"""Whether a path names a repository of the Hugging Face hub, and whether the hub can be reached at all.

When the hub is unreachable, its library retries for half a minute for every file. This module tries the hub once; if it
does not answer, only files in the local cache are used.
"""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

SECONDS_TO_ANSWER = 5.0
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_hub_id(path: str) -> bool:
    """Return whether a path that is not a local folder may be a hub id, OWNER/NAME.

    If OWNER is a local folder, the path is that of something missing in it.
    """
    return _HUB_ID.fullmatch(path) is not None and not Path(path.partition("/")[0]).is_dir()


def why_no_hub_id(path: str) -> str:
    """Return a text that says why a path is neither a folder nor a hub id."""
    parent = Path(path).parent
    if not parent.is_dir() or parent == Path():
        return "there is no such folder, and it is no hub id (OWNER/NAME)"
    names = sorted(each.name for each in parent.iterdir() if each.is_dir())
    return f"the folder {parent} has no {Path(path).name} in it, but {', '.join(names) or 'nothing'}"


def look_for_hub(path: str | Path) -> None:
    """Switch the hub's library to offline mode if `path` is on the hub and the hub does not answer."""
    from huggingface_hub import constants

    if not (Path(path).exists() or constants.is_offline_mode() or _hub_answers(constants.ENDPOINT)):
        constants.HF_HUB_OFFLINE = True


@functools.cache
def _hub_answers(endpoint: str) -> bool:
    """Return whether the hub accepts connections; behind a proxy, assume that it does."""
    place = urllib.parse.urlsplit(endpoint)
    host, port = place.hostname or "", place.port or (80 if place.scheme == "http" else 443)
    if place.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return True
    answered, ended = threading.Event(), threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=SECONDS_TO_ANSWER):
            answered.set()
        ended.set()

    threading.Thread(target=connect, daemon=True, name="hub").start()  # a DNS lookup has no timeout
    ended.wait(SECONDS_TO_ANSWER)
    return answered.is_set()
