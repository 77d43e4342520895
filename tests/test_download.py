"""Downloads from hosts that lose connections, stall, drip, change their files, or answer oddly; and progress in logs.

What a download leaves in the cache directory, and several processes, are test_data.py's.
"""

import contextlib
import dataclasses
import os
import re
import socket
import struct
import sys
import threading
import time
import urllib.error

import pytest
from test_data import HOPPER, ON_HOST, ON_MIRROR, UMAZE, cache, env_like, hdf5_bytes, host, leftovers, part_path  # noqa: F401

import d4rl_gymnasium as d4rl
from d4rl_gymnasium import data, download, tasks
from d4rl_gymnasium.progress import Progress


@contextlib.contextmanager
def server(answer):
    """A URL where `answer(connection, request)` is called for each connection; it may send what it likes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

        def talk(connection):
            with connection, contextlib.suppress(OSError):
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(4096)
                answer(connection, request.decode())

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def first_byte(request):
    return int(request.split("Range: bytes=")[1].split("-")[0]) if "Range: bytes=" in request else 0


def head(start, total, **more):
    lines = [f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{total - 1}/{total}"] if start else [
        "HTTP/1.1 200 OK"
    ]  # fmt: skip
    lines += [f"Content-Length: {total - start}"] + [f"{key.replace('_', '-')}: {value}" for key, value in more.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.3)
    monkeypatch.setattr(download, "PAUSE", 0.01)


# --- Lost, stalled, slow ---------------------------------------------------------------------------------------------


def test_a_host_that_resets_every_900_kb_is_finished(tmp_path):
    content, starts = os.urandom(12_000_000), []

    def answer(connection, request):
        starts.append(first_byte(request))
        connection.sendall(head(starts[-1], len(content)) + content[starts[-1] : starts[-1] + 900_000])
        time.sleep(0.05)  # for what was sent to arrive
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets

    part = tmp_path / "part"
    with server(answer) as url:
        download.download(f"{url}/file", part)
    assert part.read_bytes() == content
    assert starts == list(range(0, 12_000_000, 900_000))  # nothing was asked for twice


def test_a_stalled_connection_goes_on_where_it_stopped(tmp_path, quick):
    content, starts = os.urandom(3_000_000), []

    def answer(connection, request):
        starts.append(first_byte(request))
        connection.sendall(head(starts[-1], len(content)) + content[starts[-1] : starts[-1] + 700_123])
        time.sleep(1.5)

    part = tmp_path / "part"
    with server(answer) as url:
        download.download(f"{url}/file", part)
    assert part.read_bytes() == content and starts == list(range(0, 3_000_000, 700_123))


def test_chunks_that_break_off_are_not_the_end(tmp_path):
    """Without a length only the last chunk tells that all is there."""
    requests = []

    def answer(connection, request):
        requests.append(first_byte(request))
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n")
        if len(requests) > 1:
            connection.sendall(b"5\r\n file\r\n0\r\n\r\n")

    with server(answer) as url:
        download.download(f"{url}/file", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == b"whole file" and requests == [0, 5]


def test_a_host_that_is_away_for_a_while(tmp_path, monkeypatch):
    """Once it has sent something, it is waited for; one that never answers is given up at once."""
    monkeypatch.setattr(download, "PAUSE", 0.01)
    content, requests = os.urandom(100_000), []

    def answer(connection, request):
        requests.append(first_byte(request))
        if len(requests) not in (2, 3):
            connection.sendall(head(requests[-1], len(content)) + content[requests[-1] :][:60_000])

    with server(answer) as url:
        download.download(f"{url}/file", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == content and requests == [0, 60_000, 60_000, 60_000]
    requests.clear()
    with server(lambda connection, request: requests.append(0)) as url, pytest.raises(ConnectionError):
        download.download(f"{url}/file", tmp_path / "other")
    assert len(requests) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_no_host_is_asked_for_ever(tmp_path, quick, ranges):
    """One that never gets beyond the same byte, with and without an answer to Range."""
    requests = []

    def answer(connection, request):
        requests.append(first_byte(request) if ranges else 0)
        connection.sendall(head(requests[-1], 10_000) + bytes(max(1000 - requests[-1], 0)))

    with server(answer) as url, pytest.raises(ConnectionError, match="lost 5 times without any progress"):
        download.download(f"{url}/file", tmp_path / "part")
    assert len(requests) == 1 + download.ATTEMPTS


@pytest.mark.parametrize("pieces", [b"x" * 20, b""], ids=["drip", "silence"])
def test_a_host_that_drips_is_given_up_for_the_mirror(cache, host, hdf5_bytes, monkeypatch, quick, pieces):  # noqa: F811
    host.files[ON_MIRROR] = hdf5_bytes
    monkeypatch.setattr(download, "PATIENCE", 1.0)

    def drip(connection, request):
        connection.sendall(head(first_byte(request), 10_000_000))
        while True:
            connection.sendall(pieces)
            time.sleep(0.02)

    with server(drip) as url:
        monkeypatch.setattr(tasks, "HOST", url)
        start = time.monotonic()
        assert d4rl.find_dataset(env_like()).source == f"D4RL (downloaded from {HOPPER.mirror_url})"
    assert time.monotonic() - start < 6
    assert leftovers(cache) == [HOPPER.file_name, HOPPER.file_name + ".sha256"]


def test_a_host_above_the_floor_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    content = os.urandom(60_000)

    def answer(connection, request):
        connection.sendall(head(0, len(content)))
        for start in range(0, len(content), 1000):
            connection.sendall(content[start : start + 1000])
            time.sleep(0.01)

    with server(answer) as url:
        download.download(f"{url}/file", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == content


# --- A file that changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["the same run", "a later run"])
def test_a_file_that_changed_between_attempts(cache, host, hdf5_bytes, again):  # noqa: F811
    """A newer file of the same size: nothing but its version tells, and a mixture would open as HDF5."""
    newer = bytearray(hdf5_bytes)
    newer[1000] ^= 1
    host.files[ON_HOST], host.version = bytes(newer), '"2"'
    part = part_path(cache, host)
    if again == "a later run":
        part.write_bytes(hdf5_bytes[:500_000])
        part.with_name(part.name + ".version").write_text(f'"1"\n{len(newer)}')
        expected = ["bytes=500000-"]
    else:

        def change():
            host.version = '"3"'
            return 500_000

        class Changing(list):
            def pop(self, _):
                super().pop(0)
                return change()

        host.lose_after = Changing([None])
        expected = [None, "bytes=500000-"]
    assert d4rl.find_dataset(env_like()).path.read_bytes() == newer
    assert [wanted for _, wanted in host.requests] == expected
    assert leftovers(cache) == [HOPPER.file_name, HOPPER.file_name + ".sha256"]


def test_the_same_version_goes_on(cache, host, hdf5_bytes):  # noqa: F811
    host.files[ON_HOST], host.version = hdf5_bytes, '"1"'
    host.lose_after = [500_000]
    assert d4rl.find_dataset(env_like()).path.read_bytes() == hdf5_bytes
    assert [wanted for _, wanted in host.requests] == [None, "bytes=500000-"]


MONDAY, TUESDAY = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"


@pytest.mark.parametrize(
    "first, span, then",
    [
        ({"ETag": '"1"'}, "bytes {start}-9999/10000", {"ETag": '"2"'}),
        ({"Last_Modified": MONDAY}, "bytes {start}-9999/10000", {"Last_Modified": TUESDAY}),
        ({"ETag": '"1"'}, "bytes {start}-19999/20000", {"ETag": '"1"'}),  # another size
        ({}, "bytes {start}-19999/20000", {}),
        ({"ETag": '"1"'}, "bytes 0-9999/10000", {"ETag": '"1"'}),  # other bytes than were asked for
        ({}, "pages 7", {}),
        ({}, None, {}),
    ],
)
def test_bytes_that_do_not_follow_are_not_appended(tmp_path, quick, first, span, then):
    """A host that knows Range and not If-Range."""
    content, newer, requests = os.urandom(10_000), os.urandom(10_000), []

    def answer(connection, request):
        start = first_byte(request)
        requests.append(start)
        if start:
            line = f"Content-Range: {span.format(start=start)}\r\n" if span else ""
            lines = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in then.items())
            connection.sendall(f"HTTP/1.1 206 Partial Content\r\n{line}{lines}\r\n".encode() + newer[start:])
        elif len(requests) == 1:
            connection.sendall(head(0, 10_000, **first) + content[:4000])
        else:
            connection.sendall(head(0, 10_000, **then) + newer)

    with server(answer) as url:
        download.download(f"{url}/file", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == newer and requests == [0, 4000, 0]


@pytest.mark.parametrize("size", ["10000", "*"])
@pytest.mark.parametrize("first", [{"ETag": '"1"'}, {"Last_Modified": MONDAY}, {"ETag": 'W/"1"'}])
@pytest.mark.parametrize("then", [{}, {"ETag": 'W/"1"'}, {"Last_Modified": MONDAY}])
def test_an_answer_short_of_words_goes_on(tmp_path, quick, first, then, size):
    """An answer to If-Range need not repeat what the host said of the file before."""
    content, requests = os.urandom(10_000), []

    def answer(connection, request):
        start = first_byte(request)
        requests.append(start)
        if start:
            lines = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in then.items())
            line = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-9999/{size}\r\n"
            connection.sendall(f"{line}{lines}\r\n".encode() + content[start : start + 4000])
        else:
            connection.sendall(head(0, 10_000, **first) + content[:4000])

    with server(answer) as url:
        download.download(f"{url}/file", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == content and requests == [0, 4000, 8000]


@pytest.mark.parametrize("note", ["", "half", "\x00\xff\n10", '"1"\n-3', '"1"\n10\n10'])
def test_a_note_that_cannot_be_read(tmp_path, note):
    (tmp_path / "part").write_bytes(b"01234")
    (tmp_path / "part.version").write_text(note, "latin-1")
    with server(lambda c, request: c.sendall(head(first_byte(request), 10, ETag='"1"') + b"56789")) as url:
        download.download(f"{url}/file", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == b"0123456789"


def test_if_range_is_sent(tmp_path):
    requests = []

    def answer(connection, request):
        requests.append(request)
        version = {"ETag": 'W/"weak"', "Last_Modified": "Tue, 02 Jan 2024 00:00:00 GMT"}
        connection.sendall(head(first_byte(request), 10, **version) + b"01234")

    with server(answer) as url:
        download.download(f"{url}/file", tmp_path / "part")
    assert "If-Range" not in requests[0] and "If-Range: Tue, 02 Jan 2024 00:00:00 GMT" in requests[1]


# --- Odd answers -----------------------------------------------------------------------------------------------------

ODD = {
    "length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: about 2 MB\r\n\r\nxx",
        "an odd answer, Content-Length: 'about 2 MB'",
    ),
    "a long length": (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nxx", "an odd answer"),
    "status": (b"HTTP/1.1 204 No Content\r\n\r\n", "an odd answer, HTTP status 204"),
    "part unasked": (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 2\r\n\r\nxx", "without any progress"),
    "416 for ever": (
        b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */5\r\n\r\n",
        "Range Not Satisfiable",
    ),
    "redirect loop": (b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n", "infinite loop"),
    "redirect to nowhere": (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "Found"),
    "redirect to a file": (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "not allowed"),
    "redirect to no port": (b"HTTP/1.1 302 Found\r\nLocation: http://a:b/\r\n\r\n", "nonnumeric port"),
    "redirect to no address": (b"HTTP/1.1 302 Found\r\nLocation: http://[1/\r\n\r\n", "no HTTP answer"),
    "redirect to no letters": (b"HTTP/1.1 302 Found\r\nLocation: http://a\xff..b/\r\n\r\n", "no HTTP answer"),
    "not HTTP": (b"220 smtp ready\r\n\r\n", "no HTTP answer"),
    "endless header": (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "no HTTP answer"),
    "many headers": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "no HTTP answer"),
    "nothing": (b"", "no HTTP answer|Remote end closed"),
}


@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
@pytest.mark.parametrize(("sent", "reason"), ODD.values(), ids=ODD)
def test_odd_answers_are_sentences_and_the_mirror_is_tried(
    cache, host, hdf5_bytes, monkeypatch, quick, capsys, sent, reason, begun  # noqa: F811
):  # fmt: skip
    with server(lambda connection, request: connection.sendall(sent)) as url:
        monkeypatch.setattr(tasks, "HOST", url)
        name = f"{HOPPER.file_name}.{url.removeprefix('http://').replace(':', '_')}.part"
        for mirror in (False, True):
            cache.mkdir(exist_ok=True)
            if begun:
                (cache / name).write_bytes(hdf5_bytes[:1000])
            if mirror:
                host.files[ON_MIRROR] = hdf5_bytes
                assert d4rl.find_dataset(env_like()).source == f"D4RL (downloaded from {HOPPER.mirror_url})"
                assert leftovers(cache) == [HOPPER.file_name, HOPPER.file_name + ".sha256"]
            else:
                with pytest.raises(d4rl.DatasetError, match=reason) as error:
                    d4rl.find_dataset(env_like())
                assert "\n" not in str(error.value) and "Not Found" in str(error.value)  # both hosts' reasons


def test_an_error_page_is_a_reason_at_once(tmp_path):
    def answer(connection, request):
        connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    with server(answer) as url, pytest.raises(urllib.error.HTTPError, match="503"):
        download.download(f"{url}/file", tmp_path / "part")


# --- Progress without a terminal -------------------------------------------------------------------------------------


def test_a_line_now_and_then_in_a_log(monkeypatch, capsys):
    monkeypatch.setattr(Progress, "INTERVAL", 0.2)
    for _ in Progress(range(50), desc="collecting", unit=" rows"):
        time.sleep(0.02)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 7
    assert all(line.startswith("collecting: ") and "/50 [" in line for line in lines)
    assert lines[-1].startswith("collecting: 100%") and len(set(lines)) == len(lines)


def test_nothing_is_said_of_what_is_quick(capsys):
    for _ in Progress(range(1000)):
        pass
    with Progress(total=10) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""


def test_switched_off(monkeypatch, capsys):
    monkeypatch.setattr(Progress, "INTERVAL", 0.0)
    assert list(Progress(range(3), disable=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in Progress(range(3), desc="collecting"):
        pass
    assert "\rcollecting: 100%" in capsys.readouterr().err


def test_collections_say_how_far_they_are(monkeypatch, capsys):
    """`_collect` asks for it, whether on a terminal or not."""
    monkeypatch.setattr(Progress, "INTERVAL", 0.02)
    monkeypatch.setitem(tasks.TASKS, UMAZE.env_id, dataclasses.replace(UMAZE, collected_rows=20_000))
    data.collect(tasks.TASKS[UMAZE.env_id])
    assert re.search(r"^collecting maze2d-umaze: +\d+%.*/20000 \[", capsys.readouterr().err, re.M)
    monkeypatch.setitem(tasks.TASKS, HOPPER.env_id, dataclasses.replace(HOPPER, collected_rows=20_000))
    data.collect(tasks.TASKS[HOPPER.env_id])
    assert re.search(r"^collecting hopper-medium: +\d+%.*/20000 \[", capsys.readouterr().err, re.M)
