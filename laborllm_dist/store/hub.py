"""Whether a path names a repository of the Hugging Face hub, and whether the hub can be asked at all.

Where the hub is away its library asks again and again for half a minute, of every file. Here it is looked for once, and
where it does not answer, only what was downloaded before is taken.
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
    """Return whether a path that is no folder here may be an id of the hub, OWNER/NAME.

    Where OWNER is a folder here, it is the path of something in it that is not there.
    """
    return _HUB_ID.fullmatch(path) is not None and not Path(path.partition("/")[0]).is_dir()


def why_no_hub_id(path: str) -> str:
    """Return what is wrong with a path that is neither a folder nor a hub id, in words."""
    parent = Path(path).parent
    if not parent.is_dir() or parent == Path():
        return "there is no such folder, and it is no hub id (OWNER/NAME)"
    names = sorted(each.name for each in parent.iterdir() if each.is_dir())
    return f"the folder {parent} has no {Path(path).name} in it, but {', '.join(names) or 'nothing'}"


def look_for_hub(path: str | Path) -> None:
    """Before the hub is asked for a path, leave its library offline if the hub does not answer."""
    from huggingface_hub import constants

    if not (Path(path).exists() or constants.is_offline_mode() or _hub_answers(constants.ENDPOINT)):
        constants.HF_HUB_OFFLINE = True


@functools.cache
def _hub_answers(endpoint: str) -> bool:
    """Return whether a connection to the hub can be made; through a proxy, it is taken to be so."""
    place = urllib.parse.urlsplit(endpoint)
    host, port = place.hostname or "", place.port or (80 if place.scheme == "http" else 443)
    if place.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return True
    answered, ended = threading.Event(), threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=SECONDS_TO_ANSWER):
            answered.set()
        ended.set()

    threading.Thread(target=connect, daemon=True, name="hub").start()  # looking up a name has no time limit
    ended.wait(SECONDS_TO_ANSWER)
    return answered.is_set()
