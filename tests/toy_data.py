"""What the tests of the data layer share: rows, files, a cache directory, hosts, the command line.

A server on 127.0.0.1 stands for D4RL's host and its mirror; nothing leaves the machine.
"""

import contextlib
import dataclasses
import re
import socket
import sys
import threading

import h5py
import numpy as np
import pytest

import d4rl_gymnasium as d4rl
from d4rl_gymnasium import __main__ as cli
from d4rl_gymnasium import download, tasks

HOPPER = d4rl.TASKS["hopper-medium-v2"]
UMAZE = d4rl.TASKS["maze2d-umaze-v1"]
ON_HOST, ON_MIRROR = f"/host/{HOPPER.dataset}", f"/mirror/{HOPPER.file_name}"


# --- Rows and files --------------------------------------------------------------------------------------------------


def rows(count=50, observation_dim=11, action_dim=3, seed=0, timeouts=True, end=0.1):
    """Random rows in D4RL's raw layout, float32 and bool."""
    rng = np.random.default_rng(seed)
    raw = {
        "observations": rng.standard_normal((count, observation_dim)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (count, action_dim)).astype(np.float32),
        "rewards": rng.standard_normal(count).astype(np.float32),
        "terminals": rng.random(count) < end,
    }
    if timeouts:
        raw["timeouts"] = rng.random(count) < end
    return raw


def changed(raw=None, **changes):
    """Rows with some arrays replaced by what a function makes of them, or left out (None)."""
    raw = dict(raw or rows())
    for key, change in changes.items():
        array = raw.pop(key)
        if change:
            raw[key] = change(array)
    return raw


def with_value(value):
    def change(array):
        array = array.copy()
        array[7] = value
        return array

    return change


def write(path, raw, attributes=None, **options):
    """The arrays in a file, .npz or HDF5 by its name; attributes and options are HDF5's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez_compressed(path, **raw)
        return path
    with h5py.File(path, "w") as file:
        for key, array in raw.items():
            file.create_dataset(key, data=array, **options)
        file.attrs.update(attributes or {})
    return path


def env_like(env_id=HOPPER.env_id, horizon=None):
    """An environment's spec and spaces, without its physics."""
    env = cli.shape_of(env_id)
    if horizon:
        env.spec = dataclasses.replace(env.spec, max_episode_steps=horizon)
    return env


def transitions_of(path=None, env=None, **options):
    """The transitions of a file, or of the data that `find_dataset` finds; for hopper, or another environment."""
    env = env or env_like()
    return d4rl.qlearning_dataset(env, d4rl.find_dataset(env, path), **options)


def refused(message, path=None, env=None):
    """Asserts that there are no such transitions but a DatasetError that has this message, and returns all of it."""
    with pytest.raises(d4rl.DatasetError, match=message) as error:
        transitions_of(path, env)
    return str(error.value)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory; host and mirror that refuse connections."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tasks, "HOST", "http://127.0.0.1:9/host")
    monkeypatch.setattr(tasks, "MIRROR", "http://127.0.0.1:9/mirror")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    return tmp_path / "cache"


def leftovers(cache):
    """What stands in the cache directory besides locks."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.fixture
def small_collections(monkeypatch):
    """Of Hopper and the small maze 2,000 rows are collected."""
    for task in (HOPPER, UMAZE):
        monkeypatch.setitem(tasks.TASKS, task.env_id, dataclasses.replace(task, collected_rows=2000))


# --- Hosts -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(answer):
    """A URL where `answer(connection, request)` is called for each connection; it may send what it likes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

        def talk(connection):
            with connection, contextlib.suppress(OSError):  # the other side may be killed
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(4096)
                answer(connection, request.decode())

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def header(request, name):
    """A header of a request, None if it has none of this name."""
    line = re.search(rf"^{name}: (.*)\r$", request, re.MULTILINE)
    return line and line[1]


def first_byte(request):
    return int((header(request, "Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def head(start, total, **more):
    """The head of an answer with the bytes of a file from `start` on. In `more` are other headers, None for none."""
    status = "206 Partial Content" if start else "200 OK"
    span = f"bytes {start}-{total - 1}/{total}" if start else None
    headers = {"Content_Range": span, "Content_Length": total - start} | more
    lines = [f"{key.replace('_', '-')}: {value}" for key, value in headers.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "\r\n"]).encode()


class Host:
    """Serves `files` (path -> bytes), with Range; can lose connections, hold back, and answer whole files only."""

    def __init__(self):
        self.files, self.requests = {}, []
        self.ranges = True
        self.versions = [None]  # ETags of the next answers; the last one stays
        self.lose_after = []  # bytes after which the next connections are lost, one entry each
        self.hold_after = None  # bytes after which an answer waits for `go_on`
        self.holding, self.go_on = threading.Event(), threading.Event()

    def answer(self, connection, request):
        path = request.split()[1]
        self.requests.append((path, header(request, "Range")))
        content = self.files.get(path)
        if content is None:
            return connection.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")
        version = self.versions.pop(0) if len(self.versions) > 1 else self.versions[0]
        unchanged = header(request, "If-Range") in (None, version)
        start = first_byte(request) if self.ranges and unchanged else 0
        if start >= len(content):
            head_of_416 = f"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{len(content)}\r\n\r\n"
            return connection.sendall(head_of_416.encode())
        connection.sendall(head(start, len(content), ETag=version))
        end = start + self.lose_after.pop(0) if self.lose_after else len(content)
        hold_after = self.hold_after  # a test may change it meanwhile
        if hold_after is not None:
            connection.sendall(content[start:hold_after])
            self.holding.set()
            self.go_on.wait(120)
            start = max(start, hold_after)
        connection.sendall(content[start:end])


@pytest.fixture
def host(monkeypatch):
    host = Host()
    with server(host.answer) as host.url:
        monkeypatch.setattr(tasks, "HOST", f"{host.url}/host")
        host.mirror_url = host.url.replace("127.0.0.1", "localhost") + "/mirror"  # another host's name
        monkeypatch.setattr(tasks, "MIRROR", host.mirror_url)
        yield host
        host.go_on.set()


@pytest.fixture
def hdf5_bytes(tmp_path):
    """A valid file for hopper, as bytes: 2 MB that do not compress, two blocks of a download."""
    return write(tmp_path / "made" / "hopper.hdf5", rows(34_000)).read_bytes()


def part_path(cache, url, task=HOPPER):
    """Where a download of the task's file from the host at `url` begins."""
    cache.mkdir(exist_ok=True)
    return cache / f"{task.file_name}.{url.removeprefix('http://').replace(':', '_')}.part"


# --- Command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `python -m d4rl_gymnasium ARGUMENTS` in this process; gives exit code, output, errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["d4rl_gymnasium", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        output, errors = capsys.readouterr()
        if isinstance(code, str):  # Python prints it and exits with 1
            code, errors = 1, errors + code
        assert "Traceback" not in errors
        return code, output, errors

    return run
