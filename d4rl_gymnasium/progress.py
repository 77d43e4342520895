"""What is said on stderr while one waits: sentences, and how far something has come."""

import sys

import tqdm as tqdm_package


def say(message: str) -> None:
    tqdm_package.tqdm.write(message, file=sys.stderr)


class Progress(tqdm_package.tqdm):
    """tqdm's bar on a terminal; in a log a line each ten seconds, and none for what takes less."""

    INTERVAL = 10.0  # seconds

    def __init__(self, iterable=None, **options):
        if not sys.stderr.isatty() and not options.get("disable"):
            every = self.INTERVAL
            options |= {"file": _Lines(), "mininterval": every, "maxinterval": every, "delay": every, "ncols": 100}
        super().__init__(iterable, **options)


class _Lines:
    """A file for tqdm, whose bars, drawn one over the other, come out as lines."""

    last = ""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line and line != self.last:
            say(line)
            self.last = line

    def flush(self) -> None:
        sys.stderr.flush()
