"""How many workers there are to be, by partitions and the room on nodes. Knows no Ray."""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import structlog

from nap_stream.errors import WorkerError
from nap_stream.settings.run import WorkerSettings

COUNT_EVERY_S = 5.0
"""How often the broker is asked how many partitions there are, where something follows them."""
COUNT_SELDOM_S = 60.0
"""How often elsewhere, for /healthz to say that a topic is gone."""
JOIN_S = 1.0
TINY = 1e-9
"""Of a GPU: fractions of it add up to a whole one but for so much."""


@dataclass(frozen=True, slots=True)
class Node:
    """What a node of the cluster has, whoever uses it."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Needs:
    """What one worker takes of a node."""

    cpus: int
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")

    def room(self, node: Node) -> int:
        """How many workers a node has room for. Parts of a GPU are never of two."""
        of_cpus = int(node.cpus // self.cpus)
        return of_cpus if self.gpus == 0 else min(of_cpus, gpu_room(self.gpus, node.gpus))


def gpu_room(each: float, gpus: float) -> int:
    """How many workers with so much of a GPU ``gpus`` of a node have room for; 0 without need."""
    if each == 0:
        return 0
    return int(gpus // each) if each >= 1 else int(gpus) * int(1 / each + TINY)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the driver wants of workers, for the coordinator to tell.

    ``expected`` is how many are to report, ``names`` who may. ``unplaced`` says for what those wait
    that have no process, where they are missed. ``topics`` says how many partitions the broker has
    of each topic; None where that is not known.
    """

    expected: int
    names: tuple[str, ...] = ()
    unplaced: Mapping[str, str] = field(default_factory=dict)
    topics: Mapping[str, int] | None = None


def wanted(settings: WorkerSettings, partitions: int, room: int) -> int:
    """How many workers there are to be, for so many partitions, on a cluster with so much room."""
    if settings.count != "auto":
        return settings.count
    most = partitions if settings.autoscaled else min(partitions, room)
    return max(settings.min_count, min(most, settings.max_count))


def require_room(settings: WorkerSettings, needs: Needs, nodes: Iterable[Node]) -> None:
    """Refuse workers that the cluster can never place; one that grows by itself may.

    Raises:
        WorkerError: Naming what is too little.
    """
    nodes, count = list(nodes), settings.at_least
    room = sum(map(needs.room, nodes))
    if settings.autoscaled or room >= count:
        return
    key = "worker.min_count" if settings.count == "auto" else "worker.count"
    action = (
        "Ask for fewer workers, smaller fractions, or a larger cluster; or say with "
        "worker.autoscaled that it grows by itself"
    )
    has = {"CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}
    for resource, need in {"CPU": float(needs.cpus * count), "GPU": needs.gpus * count}.items():
        if need > has[resource]:
            raise WorkerError(
                f"{count} workers need {need:g} {resource}s, the Ray cluster has {has[resource]:g}",
                *(key, action),
            )
    raise WorkerError(
        f"a worker needs {needs} of one node, and the nodes of the Ray cluster have room for "
        f"{room} of {count} workers",
        *(key, action),
    )


class Repeated:
    """Does ``work`` every ``every_s`` seconds, in a thread of its own, from `start` to `close`.

    Where it raises, the event ``failed`` is logged with the ``words`` of the error, once until it
    goes well again. Work that is under way is not waited for long.
    """

    def __init__(
        self,
        work: Callable[[], None],
        every_s: float,
        *,
        name: str,
        failed: str,
        words: Callable[[Exception], str],
    ) -> None:
        self._work, self._every_s, self._event, self._words = work, every_s, failed, words
        self._stop = threading.Event()
        self._has_failed = False
        self._thread = threading.Thread(target=self._repeat, name=name, daemon=True)

    def start(self) -> None:
        """Begin with it."""
        self._thread.start()

    def close(self) -> None:
        """Do it no more. Safe to call twice, and before `start`."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def _repeat(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._work()
            except Exception as error:  # noqa: BLE001  whatever it is, the next time may go well
                if not (self._has_failed or self._stop.is_set()):
                    structlog.get_logger().warning(self._event, cause=self._words(error))
                self._has_failed = True
            else:
                self._has_failed = False


class PartitionCount:
    """How many partitions topics have, asked for again and again in a thread of its own.

    ``count`` asks the broker, every ``every_s`` seconds; where it raises, which is logged once, or
    finds none at all, the last answer stays in force: that of ``topics``.
    """

    def __init__(
        self,
        first: Mapping[str, int],
        count: Callable[[], Mapping[str, int]],
        every_s: float = COUNT_EVERY_S,
    ) -> None:
        self.topics, self._ask = first, count
        self._repeated = Repeated(
            self._count,
            every_s,
            name="partition-count",
            failed="partitions_not_counted",
            words=lambda error: f"{type(error).__name__}: {error}",
        )
        self._repeated.start()

    def __call__(self) -> int:
        """The last answer, of all topics together."""
        return sum(self.topics.values())

    def close(self) -> None:
        """Ask no more. A question that is under way is not waited for long."""
        self._repeated.close()

    def _count(self) -> None:
        found = self._ask()
        if any(found.values()) and found != self.topics:
            self._tell(found)
            self.topics = found

    def _tell(self, found: Mapping[str, int]) -> None:
        before = {name for name, count in self.topics.items() if count}
        now = {name for name, count in found.items() if count}
        structlog.get_logger().info(
            "partitions_changed",
            before=self(),
            now=sum(found.values()),
            topics_gone=sorted(before - now),
            topics_new=sorted(now - before),
        )
