"""What clients have counted, and whether the server's own metrics agree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_HUNG_UP = ("200", "429", "499")  # of a request whose client has gone: a stream has begun with 200
_OWN = "/metrics"  # is read while the counts are compared
_JUSTIFIED = (503, 507)


@dataclass
class Ledger:
    """Counts of a run.

    Args:
        kinds: actions by kind.
        answers: requests that were answered, by method, route and status.
        left: requests whose client hung up in the middle of the answer, by method and route.
        dropped: requests whose client hung up before the answer; some of these may not have been sent yet.
        lost: requests without a whole answer, each in words.
        images: images that arrived.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    answers: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    images: int = 0

    def answered(self, method: str, route: str, status: int, images: int = 0) -> None:
        """Count an answer, with the images in it."""
        self.answers[method, route, str(status)] += 1
        self.images += images

    def statuses(self) -> dict[str, int]:
        """Return the number of answers by status."""
        found = Counter[str]()
        for (*_, status), number in self.answers.items():
            found[status] += number
        return dict(sorted(found.items()))

    def server_errors(self) -> int:
        """Return the number of answers from 500 up that nothing justifies."""
        return sum(number for (*_, status), number in self.answers.items() if is_server_error(int(status)))

    def differences(self, before: Counter[tuple[str, ...]], after: Counter[tuple[str, ...]]) -> list[str]:
        """Return where the server's metrics do not agree, in words.

        Args:
            before: the metrics at the start.
            after: the metrics at the end, when nothing waits.
        """
        grown: dict[tuple[str, ...], float] = {
            key: value - before[key] for key, value in after.items() if value != before[key]
        }
        counted = {key[1:]: int(value) for key, value in grown.items() if key[0] == "infid_requests_total"}
        found = []
        for method, route in sorted({key[:2] for key in (*counted, *self.answers, *self.left) if key[1] != _OWN}):
            statuses = {key[2] for key in (*counted, *self.answers) if key[:2] == (method, route)}
            rest = {
                status: counted.get((method, route, status), 0) - self.answers[method, route, status]
                for status in sorted(statuses)
            }
            wrong = (
                any(number for status, number in rest.items() if status not in _HUNG_UP)
                or min(rest.values(), default=0) < 0
            )
            least = self.left[method, route]
            most = least + self.dropped[method, route]
            if wrong or not least <= sum(rest.values()) <= most:
                found.append(f"{method} {route}: the server counts {rest} more, and {least} to {most} hung up")
        done = int(grown.get(("infid_images_total", "done"), 0))
        if done < self.images:
            found.append(f"{self.images} images arrived, and the server counts {done}")
        return found


def is_server_error(status: int) -> bool:
    """Return whether a status is a fault of the server: neither that it stops or loads, nor that there is no room."""
    return status >= 500 and status not in _JUSTIFIED
