"""Downloads from hosts that lose connections, stall, drip, change their files, or answer oddly; and progress in logs.

What a download leaves in the cache directory, and several processes, are test_data.py's.
"""

import dataclasses
import os
import re
import socket
import struct
import sys
import time

import pytest
from toy_data import HOPPER, ON_HOST, ON_MIRROR, UMAZE, env_like, first_byte, head, leftovers, part_path, server

import d4rl_gymnasium as d4rl
from d4rl_gymnasium import data, download, tasks
from d4rl_gymnasium.progress import Progress

pytestmark = pytest.mark.usefixtures("cache")


def downloaded(answer, part):
    """What `download` gets of a host where `answer(connection, start)` is called, and the starts that it asks for."""
    starts = []

    def talk(connection, request):
        starts.append(first_byte(request))
        answer(connection, starts[-1])

    with server(talk) as url:
        download.download(f"{url}/file", part)
    return part.read_bytes(), starts


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.3)


# --- Lost, stalled, slow ---------------------------------------------------------------------------------------------


def test_a_host_that_resets_every_900_kb_is_finished(tmp_path):
    content = os.urandom(12_000_000)

    def answer(connection, start):
        connection.sendall(head(start, len(content)) + content[start : start + 900_000])
        time.sleep(0.05)  # for what was sent to arrive
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets

    starts = list(range(0, 12_000_000, 900_000))  # nothing is asked for twice
    assert downloaded(answer, tmp_path / "part") == (content, starts)


def test_a_stalled_connection_goes_on_where_it_stopped(tmp_path, quick):
    content = os.urandom(3_000_000)

    def answer(connection, start):
        connection.sendall(head(start, len(content)) + content[start : start + 700_123])
        time.sleep(1.5)

    assert downloaded(answer, tmp_path / "part") == (content, list(range(0, 3_000_000, 700_123)))


def test_chunks_that_break_off_are_not_the_end(tmp_path):
    """Without a length only the last chunk tells that all is there."""

    def answer(connection, start):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n")
        if start:
            connection.sendall(b"5\r\n file\r\n0\r\n\r\n")

    assert downloaded(answer, tmp_path / "part") == (b"whole file", [0, 5])


def test_a_host_that_is_away_for_a_while(tmp_path):
    """Once it has sent something, it is waited for; one that never answers is given up at once."""
    content, requests = os.urandom(100_000), []

    def answer(connection, start):
        requests.append(start)
        if len(requests) not in (2, 3):
            connection.sendall(head(start, len(content)) + content[start : start + 60_000])

    assert downloaded(answer, tmp_path / "part") == (content, [0, 60_000, 60_000, 60_000])
    requests.clear()
    with pytest.raises(ConnectionError):
        downloaded(lambda connection, start: requests.append(start), tmp_path / "other")
    assert len(requests) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_no_host_is_asked_for_ever(tmp_path, quick, ranges):
    """One that never gets beyond the same byte, with and without an answer to Range."""
    requests = []

    def answer(connection, start):
        requests.append(start if ranges else 0)
        connection.sendall(head(requests[-1], 10_000) + bytes(max(1000 - requests[-1], 0)))

    with pytest.raises(ConnectionError, match="lost 5 times without any progress"):
        downloaded(answer, tmp_path / "part")
    assert len(requests) == 1 + download.ATTEMPTS


@pytest.mark.parametrize("pieces", [b"x" * 20, b""], ids=["drip", "silence"])
def test_a_host_that_drips_is_given_up_for_the_mirror(cache, host, hdf5_bytes, monkeypatch, quick, pieces):
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

    def answer(connection, _):
        connection.sendall(head(0, len(content)))
        for start in range(0, len(content), 1000):
            connection.sendall(content[start : start + 1000])
            time.sleep(0.01)

    assert downloaded(answer, tmp_path / "part") == (content, [0])


# --- A file that changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["the same run", "a later run"])
def test_a_file_that_changed_between_attempts(cache, host, hdf5_bytes, again):
    """A newer file of the same size: nothing but its version tells, and a mixture would open as HDF5."""
    newer = bytearray(hdf5_bytes)
    newer[1000] ^= 1
    host.files[ON_HOST] = bytes(newer)
    part = part_path(cache, host.url)
    if again == "a later run":
        part.write_bytes(hdf5_bytes[:500_000])
        part.with_name(part.name + ".version").write_text(f'"1"\n{len(newer)}')
        host.versions = ['"2"']
        expected = ["bytes=500000-"]
    else:
        host.versions, host.lose_after = ['"1"', '"2"'], [500_000]
        expected = [None, "bytes=500000-"]
    assert d4rl.find_dataset(env_like()).path.read_bytes() == newer
    assert [wanted for _, wanted in host.requests] == expected
    assert leftovers(cache) == [HOPPER.file_name, HOPPER.file_name + ".sha256"]


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

    def answer(connection, start):
        requests.append(start)
        if start:
            told = {"Content_Range": span and span.format(start=start), "Content_Length": None}
            connection.sendall(head(start, 10_000, **told, **then) + newer[start:])
        elif len(requests) == 1:
            connection.sendall(head(0, 10_000, **first) + content[:4000])
        else:
            connection.sendall(head(0, 10_000, **then) + newer)

    assert downloaded(answer, tmp_path / "part") == (newer, [0, 4000, 0])


@pytest.mark.parametrize("size", ["10000", "*"])
@pytest.mark.parametrize("first", [{"ETag": '"1"'}, {"Last_Modified": MONDAY}, {"ETag": 'W/"1"'}])
@pytest.mark.parametrize("then", [{}, {"ETag": 'W/"1"'}, {"Last_Modified": MONDAY}])
def test_an_answer_short_of_words_goes_on(tmp_path, quick, first, then, size):
    """An answer to If-Range need not repeat what the host said of the file before."""
    content = os.urandom(10_000)

    def answer(connection, start):
        if start:
            told = {"Content_Range": f"bytes {start}-9999/{size}", "Content_Length": None}
            connection.sendall(head(start, 10_000, **told, **then) + content[start : start + 4000])
        else:
            connection.sendall(head(0, 10_000, **first) + content[:4000])

    assert downloaded(answer, tmp_path / "part") == (content, [0, 4000, 8000])


@pytest.mark.parametrize("note", ["", "half", "\x00\xff\n10", '"1"\n-3', '"1"\n10\n10'])
def test_a_note_that_cannot_be_read(tmp_path, note):
    (tmp_path / "part").write_bytes(b"01234")
    (tmp_path / "part.version").write_text(note, "latin-1")

    def answer(connection, start):
        connection.sendall(head(start, 10, ETag='"1"') + b"56789")

    assert downloaded(answer, tmp_path / "part") == (b"0123456789", [5])


def test_if_range_is_sent(tmp_path):
    requests = []

    def answer(connection, request):
        requests.append(request)
        connection.sendall(head(first_byte(request), 10, ETag='W/"weak"', Last_Modified=TUESDAY) + b"01234")

    with server(answer) as url:
        download.download(f"{url}/file", tmp_path / "part")
    assert "If-Range" not in requests[0] and f"If-Range: {TUESDAY}" in requests[1]


# --- Odd answers -----------------------------------------------------------------------------------------------------

ODD = {
    "length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: about 2 MB\r\n\r\nxx",
        "an odd answer, Content-Length: 'about 2 MB'",
    ),
    "a long length": (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nxx", "an odd answer"),
    "status": (b"HTTP/1.1 204 No Content\r\n\r\n", "an odd answer, HTTP status 204"),
    "error page": (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "Service Unavailable"),
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
def test_odd_answers_are_sentences_then_the_mirror(cache, host, hdf5_bytes, monkeypatch, quick, sent, reason, begun):
    with server(lambda connection, request: connection.sendall(sent)) as url:
        monkeypatch.setattr(tasks, "HOST", url)
        for mirror in (False, True):
            if begun:
                part_path(cache, url).write_bytes(hdf5_bytes[:1000])
            if mirror:
                host.files[ON_MIRROR] = hdf5_bytes
                assert d4rl.find_dataset(env_like()).source == f"D4RL (downloaded from {HOPPER.mirror_url})"
                assert leftovers(cache) == [HOPPER.file_name, HOPPER.file_name + ".sha256"]
            else:
                with pytest.raises(d4rl.DatasetError, match=reason) as error:
                    d4rl.find_dataset(env_like())
                assert "\n" not in str(error.value) and "Not Found" in str(error.value)  # both hosts' reasons


# --- Progress without a terminal -------------------------------------------------------------------------------------


def test_a_line_now_and_then_in_a_log(monkeypatch, capsys):
    monkeypatch.setattr(Progress, "INTERVAL", 0.2)
    for _ in Progress(range(50), desc="collecting", unit=" rows"):
        time.sleep(0.02)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 7
    assert all(line.startswith("collecting: ") and "/50 [" in line for line in lines)
    assert lines[-1].startswith("collecting: 100%") and len(set(lines)) == len(lines)


def test_nothing_is_said_of_what_is_quick_or_switched_off(monkeypatch, capsys):
    for _ in Progress(range(1000)):
        pass
    with Progress(total=10) as bar:
        bar.update(10)
    monkeypatch.setattr(Progress, "INTERVAL", 0.0)
    assert list(Progress(range(3), disable=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in Progress(range(3), desc="collecting"):
        pass
    assert "\rcollecting: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("task", [UMAZE, HOPPER], ids=["maze2d-umaze", "hopper-medium"])
def test_collections_say_how_far_they_are(monkeypatch, capsys, task):
    """`_collect` asks for it, whether on a terminal or not."""
    monkeypatch.setattr(Progress, "INTERVAL", 0.02)
    data.collect(dataclasses.replace(task, collected_rows=20_000))
    name = task.env_id.rsplit("-", 1)[0]
    assert re.search(rf"^collecting {name}: +\d+%.*/20000 \[", capsys.readouterr().err, re.M)
