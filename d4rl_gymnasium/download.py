"""One file over HTTP: loses nothing that arrived, and is quick to notice that nobody answers, or hardly.

Of what is needed here `requests` and `urllib3` bring the connection alone, and a limit per read; hence the standard
library.
"""

import http.client
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from d4rl_gymnasium.progress import Progress

CONNECT_TIMEOUT = 4.5  # seconds; D4RL's host and its mirror together are given up within ten
READ_TIMEOUT = 30.0  # seconds without a byte after which a connection counts as lost
FLOOR, PATIENCE = 10_000, 60.0  # a host that sends fewer bytes a second for so many seconds is given up
ATTEMPTS = 5  # connections in a row that bring the file no further, after which the host is given up
PAUSE = 1.0  # seconds before a host that has just failed is asked again
BLOCK = 1 << 20

NETWORK_ERRORS = (urllib.error.URLError, ConnectionError, TimeoutError)


def download(url: str, part: Path) -> None:
    """Write what stands at `url` to the file `part`, continuing after the bytes that are already in it.

    Beside it `part`.version tells which version of the file they are of. Raises one of NETWORK_ERRORS, after which
    `part` stays for the next time, or another OSError when it cannot be written.
    """
    pace, failures, restarts = Pace(), 0, 0
    while max(failures, restarts) < ATTEMPTS:
        if failures:
            time.sleep(PAUSE)
        before = _size(part)
        try:
            if _continue(url, part, before, pace):
                return
        except NETWORK_ERRORS:
            if not pace.total:
                raise  # nobody there: no reason to wait for it
        if pace.too_slow:
            raise TimeoutError(f"it sent fewer than {FLOOR / 1000:g} kB a second for {PATIENCE:g} seconds")
        failures = 0 if _size(part) > before else failures + 1
        restarts += _size(part) < before
    raise ConnectionError(
        f"the connection was lost {ATTEMPTS} times without any progress; the next run goes on from there"
    )


def discard(part: Path) -> None:
    """Remove what was downloaded so far."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _continue(url: str, part: Path, present: int, pace: "Pace") -> bool:
    """One connection; whether all of the file is there after it."""
    text = _note(part).read_text("latin-1") if present and _note(part).exists() else ""
    noted = text.split("\n") if re.fullmatch(r"[ -~]*\n\d{0,18}", text) else []  # tag or date, size
    headers = {"Range": f"bytes={present}-"} if present else {}
    if noted and noted[0]:
        headers["If-Range"] = noted[0]  # the host then sends a file that has changed from its start
    try:
        response = _open(urllib.request.Request(url, headers=headers))
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not present:
            raise
        if error.headers.get("Content-Range") == f"bytes */{present}":
            return True  # every byte had arrived before the last run was stopped
        discard(part)  # longer than the file: the rest of something else
        return False
    with response:
        if response.status == http.client.PARTIAL_CONTENT:
            span = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
            version = [_version(response), span[2].strip("*") if span else ""]
            if not span or int(span[1]) != present or _differ(noted, version):
                discard(part)  # these bytes do not follow those
                return False
            version = noted or version
        elif response.status == http.client.OK:
            present = 0  # the host does not continue files, or this one has changed: from the start
            size = response.headers.get("Content-Length", "")
            if not re.fullmatch(r"\d{0,18}", size):
                raise ConnectionError(f"an odd answer, Content-Length: {size!r}")
            version = [_version(response), size]
        else:
            raise ConnectionError(f"an odd answer, HTTP status {response.status}")
        total = int(version[1]) if version[1] else None
        with (
            open(part, "ab" if present else "wb") as file,
            Progress(desc=url.rsplit("/", 1)[-1], total=total, initial=present, unit="B", unit_scale=True) as bar,
        ):
            _note(part).write_text("\n".join(version), "latin-1")  # once the bytes of another version are gone
            while block := _read(response):
                file.write(block)
                bar.update(len(block))
                pace.add(len(block))
                if pace.too_slow:
                    break
            pace.add(0)
    return _size(part) == total if total is not None else block == b""


class Pace:
    """How fast bytes arrive, over all connections."""

    def __init__(self):
        self.total, self.too_slow = 0, False
        self.begun, self.recent = time.monotonic(), 0

    def add(self, count: int) -> None:
        self.total += count
        self.recent += count
        seconds = time.monotonic() - self.begun
        if seconds >= PATIENCE:
            self.too_slow = self.recent < FLOOR * seconds
            self.begun, self.recent = time.monotonic(), 0


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _version(response: http.client.HTTPResponse) -> str:
    """By what the host tells this version of a file from another, as If-Range takes it."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _differ(noted: list[str], version: list[str]) -> bool:
    """Whether a tag, date or size that both tell is not the same; an answer to If-Range need not tell them all."""
    pairs = zip(noted, version, strict=False)
    return any(a and b and a != b and a.startswith('"') == b.startswith('"') for a, b in pairs)


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
    if isinstance(response, urllib.error.URLError):
        raise response
    if isinstance(response, Exception):  # not HTTP, a redirect to what is no address, a proxy that is none ...
        raise ConnectionError(f"no HTTP answer ({response!r})")
    return response


def _read(response: http.client.HTTPResponse) -> bytes | None:
    """What has arrived, as soon as something has; b"" at the end, None once the connection is lost."""
    try:
        return response.read1(BLOCK)
    except (OSError, http.client.HTTPException):
        return None
