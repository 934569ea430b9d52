"""Faults a server can be told to commit: how often, at which request."""

import dataclasses
import re
import threading


@dataclasses.dataclass
class Fault:
    """One fault at the first `times` requests that match.

    kind: a status code; `cut` (the connection ends before the work is done), `cut after` (the work
    is done, the answer is lost), `slow` (an answer after `delay` seconds), `race` (someone else
    commits just before), `echo` (500 whose text repeats the request's Authorization header).
    """

    method: str
    pattern: str
    kind: int | str
    times: int = 1
    delay: float = 0.0
    skip: int = 0
    """Requests let through first."""
    met: int = 0

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
    ) -> Fault:
        fault = Fault(method, pattern, kind, times, delay, skip)
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
