"""One file over HTTP: resumable, with a progress bar, and quick to notice that nobody answers."""

import http.client
import queue
import threading
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

CONNECT_TIMEOUT = 4.5  # seconds; D4RL's host and its mirror together are given up within ten
READ_TIMEOUT = 30.0  # seconds without a byte after which a connection counts as lost
ATTEMPTS = 5  # connections a download may lose before it is given up; what arrived stays for the next run
BLOCK = 1 << 20

NETWORK_ERRORS = (urllib.error.URLError, ConnectionError, TimeoutError)


def download(url: str, part: Path) -> None:
    """Write what stands at `url` to the file `part`, continuing after the bytes that are already in it.

    Raises one of NETWORK_ERRORS, or another OSError when `part` cannot be written.
    """
    for _ in range(ATTEMPTS):
        present = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={present}-"} if present else {})
        try:
            response = _open(request)
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            if error.headers.get("Content-Range") == f"bytes */{present}":
                return  # every byte had arrived before the last run was stopped
            part.unlink()  # longer than the file: the rest of something else
            continue
        with response:
            if response.status != http.client.PARTIAL_CONTENT:
                present = 0  # the host does not continue files: from the start
            length = response.headers.get("Content-Length")
            total = present + int(length) if length else None
            with (
                open(part, "ab" if present else "wb") as file,
                tqdm(
                    desc=url.rsplit("/", 1)[-1],
                    total=total,
                    initial=present,
                    unit="B",
                    unit_scale=True,
                    disable=None,  # only on a terminal
                ) as bar,
            ):
                while block := _read(response):
                    file.write(block)
                    bar.update(len(block))
        if total is None or part.stat().st_size == total:
            return
    raise ConnectionError(f"the connection was lost {ATTEMPTS} times; the next run goes on from there")


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    """`urlopen`, given up after CONNECT_TIMEOUT however many addresses a host has and however slow its resolver is."""
    answer = queue.SimpleQueue()

    def connect():
        try:
            answer.put(urllib.request.urlopen(request, timeout=READ_TIMEOUT))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        response = answer.get(timeout=CONNECT_TIMEOUT)
    except queue.Empty:
        raise TimeoutError(f"no answer in {CONNECT_TIMEOUT:g} seconds") from None
    if isinstance(response, http.client.HTTPException):
        raise ConnectionError(f"no HTTP answer ({response!r})")
    if isinstance(response, Exception):
        raise response
    return response


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next block; nothing once the connection is lost: the caller counts its bytes and asks for the rest."""
    try:
        return response.read(BLOCK)
    except (OSError, http.client.HTTPException):
        return b""
