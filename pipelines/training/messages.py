"""What the driver and the workers of a run tell each other: typed messages, the actor that holds them, their reader.

The actor imports this module, so torch and the configuration are imported for type checkers alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.runtime import leaving

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.config import Config
    from pipelines.runs.folder import RunFolder


@dataclass(frozen=True)
class ValidationSet:
    """What is measured while training.

    Attributes:
        items: the images, a part of the index of the evaluation split.
        segmented: whether MIoU is measured.
        every: steps between two validations; None: at the last step alone.
        about: what must be the same for two validations to be compared, as JSON has it: fingerprint of the images,
            levels, fingerprints of the segmenters' weights, LPIPS's trunk.
    """

    items: pa.Table
    segmented: bool
    every: int | None
    about: Mapping[str, Any]


@dataclass(frozen=True)
class WorkerTask:
    """From the driver to every worker, each time workers start.

    Attributes:
        config: the run.
        folder: the run's folder, where the checkpoints are.
        steps: the step at which the run ends.
        steps_per_epoch: steps in one pass over the training split.
        meta: what every checkpoint records beside its step: name, data, version, commit, dirty, steps.
        messages: handle of the run's `MessageQueue`.
        store_uri: of the store that a registered segmenter comes from.
        validation: what is measured while training; None: nothing.
    """

    config: Config
    folder: RunFolder
    steps: int
    steps_per_epoch: int
    meta: Mapping[str, Any]
    messages: Any
    store_uri: str = ""
    validation: ValidationSet | None = None


@dataclass(frozen=True)
class Started:
    """Workers begin at a step, for the first time or after a restart."""

    step: int
    workers: int


@dataclass(frozen=True)
class Progress:
    """A log entry: the means over the steps since the entry before, over all workers."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Validated:
    """What the weights at a step reached on the validation images.

    Attributes:
        metrics: by name, such as "psnr.sigma25".
        best: the best value of `train.best` up to this step; None without it.
        seconds: it took; None where it is sent again.
    """

    step: int
    metrics: dict[str, float]
    best: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Skipped:
    """Images that cannot be read, by name, with the reason."""

    files: dict[str, str]


@dataclass(frozen=True)
class DataMissing:
    """A worker has waited for its crops of a step for so many seconds, and goes on waiting."""

    seconds: float


@dataclass(frozen=True)
class WorkersLost:
    """Ray found that these workers died."""

    ranks: tuple[int, ...]


@dataclass(frozen=True)
class RunProgress:
    """How far one of several concurrent runs is (`d2sm table`)."""

    name: str
    step: int
    loss: float


Message = Started | Progress | Validated | Skipped | DataMissing | WorkersLost | RunProgress


@ray.remote(num_cpus=0)
class MessageQueue:
    """Holds the workers' messages until the driver has read them, and two flags of the run; no caller waits for it."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._dropped = 0  # messages the driver has confirmed
        self._stop_requested = False
        self._failure: str | None = None

    def send(self, message: Message) -> None:
        """Append a message."""
        self._messages.append(message)

    def read(self, received: int) -> list[Message]:
        """All messages after the first `received`, which are dropped. A lost answer is repeated by the next call."""
        del self._messages[: received - self._dropped]
        self._dropped = received
        return list(self._messages)

    def request_stop(self) -> None:
        """From the driver: the workers are to write a checkpoint and end."""
        self._stop_requested = True

    def stop_requested(self) -> bool:
        """Whether the driver asked the workers to end."""
        return self._stop_requested

    def set_failure(self, reason: str) -> None:
        """From a worker: it cannot go on, and neither could a restarted one."""
        self._failure = reason

    def failure(self) -> str | None:
        """Why a worker cannot go on, if one said so."""
        return self._failure


class QueueReader:
    """Creates a `MessageQueue` and, while the block runs, hands its messages to `on_message` in order, in a thread.

    Args:
        on_message: called with a message. What it raises asks the workers to end with a checkpoint, and is raised
            where the block ends.
        after_poll: called after each look into the queue.
        interval: seconds between two looks.
    """

    def __init__(
        self,
        on_message: Callable[[Any], None],
        after_poll: Callable[[], None] = lambda: None,
        *,
        interval: float = 0.5,
    ) -> None:
        self.on_message, self.after_poll, self.interval = on_message, after_poll, interval
        # On the driver's node: on another one it would be lost with that node, and the run would go on without a log.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.queue = MessageQueue.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        self._received = 0
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._poll, name="progress", daemon=True)

    def __enter__(self) -> QueueReader:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        if leaving.why_lost() or (kind is not None and issubclass(kind, KeyboardInterrupt)):
            # Ray is gone or may not answer; the actor ends with this process.
            self._thread.join(0.0 if leaving.why_lost() else 2.0)
            return
        self._thread.join()
        ray.kill(self.queue)
        if self._error is not None and kind is None:
            raise self._error

    def _poll(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(self.interval)
            try:
                messages = ray.get(self.queue.read.remote(self._received), timeout=30)
            except ray.exceptions.RayError:
                messages = []  # the machine is busy; if Ray itself is gone, the training's own call raises
            self._received += len(messages)
            try:
                for message in messages:
                    self.on_message(message)
                self.after_poll()
            except Exception as error:
                self._error = error
                self.queue.request_stop.remote()  # workers would go on for hours, without a log
                return
