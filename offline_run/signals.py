"""Ctrl-C, SIGTERM and a terminal that closes: training ends with a checkpoint, not in the middle of an update."""

import contextlib
import os
import signal
from collections.abc import Iterator


class Signals:
    """From now on, until `restore`: `received` is the first signal's number. A second one ends the process at once."""

    def __init__(self):
        self.received: int | None = None
        self.interruptible = False
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        if signal.getsignal(numbers[-1]) == signal.SIG_IGN:  # nohup ignores SIGHUP, and means it
            numbers.pop()
        self.before = {number: signal.signal(number, self.receive) for number in numbers}

    def receive(self, number: int, _) -> None:
        self.received = number
        text = f"\n{signal.Signals(number).name}: stopping with a checkpoint. A second one stops at once, without.\n"
        with contextlib.suppress(OSError):
            os.write(2, text.encode())  # `print` may be what the signal interrupted
        # At the very end: `timeout` sends its signal twice. A terminal that closes does too, later: SIGHUP is ignored.
        for other in self.before:
            signal.signal(other, signal.SIG_DFL if other in (signal.SIGINT, signal.SIGTERM) else signal.SIG_IGN)
        if self.interruptible:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def interrupting(self, condition: bool = True) -> Iterator[None]:
        """What runs in here, given the condition, ends by KeyboardInterrupt at the signal, or now if it has come."""
        self.interruptible = condition
        try:
            if self.received and condition:
                raise KeyboardInterrupt
            yield
        finally:
            self.interruptible = False

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
