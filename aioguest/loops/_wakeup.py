"""Who has ``signal.set_wakeup_fd()``: guests borrow it from the host and from each other.

There is one wake-up descriptor in a process. A guest takes it with its first signal
handler and gives it back with its last; several guests may do so in any order, and a
stranger may take it in between. Whoever has it passes on the bytes that are not its own.

Assumes: all functions run on the main thread (the signal module refuses others).
"""

from __future__ import annotations

import os
import signal
from typing import ClassVar, List


class Borrowed:
    """The wake-up descriptor, taken for `fd`."""

    # Guests that have it or had it taken from them, the latest last.
    _chain: ClassVar[List[Borrowed]] = []

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # No argument asks whether the owner wants warnings about a full buffer. The
        # quiet setting is the one that cannot write to a stranger's stderr.
        self.previous = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        self._chain.append(self)

    def forget(self) -> None:
        """Leave the chain. All that can be done outside the main thread."""
        self._chain.remove(self)
        for other in self._chain:
            if other.previous == self.fd:
                other.previous = self.previous  # We were below it: close the gap.

    def give_back(self, current: int) -> None:
        """The descriptor is free, and `current` had it last: hand it to who is next."""
        self.forget()
        signal.set_wakeup_fd(
            self.previous if current == self.fd else current, warn_on_full_buffer=False
        )

    def pass_on(self, data: bytes) -> None:
        """Give signal numbers that are not ours to the one before us."""
        if self.previous != -1:
            try:
                os.write(self.previous, data)
            except OSError:
                pass  # Full or closed: full means that it will wake up anyway.
