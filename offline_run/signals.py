"""Ctrl-C, SIGTERM and a terminal that closes: training ends with a checkpoint, not in the middle of an update."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


class Signals:
    """Until `restore`: `received` is the number of the first signal. A second one ends the process at once."""

    def __init__(self):
        self.received, self.interruptible = 0, False
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup means it
            numbers.append(signal.SIGHUP)
        self.before = {number: signal.signal(number, self.receive) for number in numbers}

    def receive(self, number: int, _) -> None:
        self.received = number
        text = f"\n{signal.Signals(number).name}: stopping with a checkpoint. A second one stops at once, without.\n"
        if sys.__stderr__:  # else a file may have its number
            with contextlib.suppress(OSError):
                os.write(2, text.encode())  # `print` may be what was interrupted
        for other in self.before:  # last, for `timeout` sends its signal twice; so does a closing terminal, later
            signal.signal(other, signal.SIG_DFL if other in (signal.SIGINT, signal.SIGTERM) else signal.SIG_IGN)
        if self.interruptible:
            raise KeyboardInterrupt

    def unless_stopped(self, act: Callable, *arguments) -> Any:
        """act(*arguments), or None where a signal ends it or has come before."""
        try:
            self.interruptible = True
            return None if self.received else act(*arguments)
        except KeyboardInterrupt:
            return None
        finally:
            self.interruptible = False

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
