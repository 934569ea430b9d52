"""Faults a server can be told to commit: how often, at which request."""

import dataclasses
import re
import threading


@dataclasses.dataclass
class Fault:
    """One fault at the first `times` requests that match.

    kind: a status code; `cut` (the connection ends before the work is done), `cut after` (the work
    is done, the answer is lost), `slow` (an answer after `delay` seconds), `race` (someone else
    commits just before), `echo` (500 whose text repeats the request's Authorization header), `expired`
    (403 of a storage whose signed address has run out, now and whenever it is used again), `full` (200,
    which refuses every file of an LFS batch with `message`).
    message: what the server says beside a status code.
    """

    method: str
    pattern: str
    kind: int | str
    times: int = 1
    delay: float = 0.0
    skip: int = 0
    """Requests let through first."""
    met: int = 0
    message: str = ""

    def matches(self, method: str, path: str) -> bool:
        if self.met == self.times or method != self.method or not re.search(self.pattern, path):
            return False
        self.skip -= 1
        return self.skip < 0


class Faults:
    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(
        self,
        method: str,
        pattern: str,
        kind: int | str,
        times: int = 1,
        delay: float = 0.0,
        skip: int = 0,
        message: str = "",
    ) -> Fault:
        fault = Fault(method, pattern, kind, times, delay, skip, message=message)
        self._faults.append(fault)
        return fault

    def meet(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.matches(method, path):
                    fault.met += 1
                    return fault
        return None

    def clear(self) -> None:
        self._faults.clear()
