"""Ctrl-C and SIGTERM during a training: the first ends it after the current step, Ctrl-C again at once."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt):
    """A training ended early by a signal, after writing a checkpoint; the message says how to continue.

    Attributes:
        signal_number: the signal, for the exit code (128 + signal_number).
    """

    def __init__(self, step: int, num_steps: int, signal_number: int | None) -> None:
        """`signal_number` is None where only another process of the training received it."""
        super().__init__(f"stopped at step {step} of {num_steps}, with a checkpoint; the same command continues from there")
        self.signal_number = signal.SIGTERM if signal_number is None else signal_number


class Interruption:
    """The signal that was received during `catch_interruption`, or None."""

    signal_number: int | None = None


@contextmanager
def catch_interruption() -> Iterator[Interruption]:
    """Record the first SIGINT or SIGTERM instead of acting on it; leave SIGINT after it to the handler from before.

    SIGTERM after it is ignored: SLURM and torchrun both send one. Those that do not want to wait send SIGKILL.

    Python allows signal handlers only in the main thread; in other threads nothing changes. Ignored signals stay ignored.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}

    def handle(number: int, _: object) -> None:
        if interruption.signal_number is None:
            interruption.signal_number = number
            logger.warning("Ending the training after this step; press Ctrl-C again to stop at once, without a checkpoint")
        elif number == signal.SIGINT:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, handle)
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_interruption_to_parent(_: int) -> None:
    """Initialise a loader process: ignore Ctrl-C, which reaches every process of a terminal, and let SIGTERM end it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
