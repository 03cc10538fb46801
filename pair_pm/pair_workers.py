"""Work on chunks in several processes, results in the order of the chunks."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from pair_pm.errors import PairPMError


@contextmanager
def open_workers(num_proc: int) -> Iterator[Callable[[Callable, Iterable], Iterator]]:
    """Open `map_in_order(convert, chunks)`: the results of the chunks, in their order, from `num_proc` processes.

    With one process the work is done here.
    """
    if num_proc == 1:
        yield map
        return
    pool = ProcessPoolExecutor(num_proc, multiprocessing.get_context("spawn"), initializer=_prepare_worker)
    try:
        yield lambda convert, chunks: _map_in_order(pool, convert, chunks, num_proc)
    except BrokenProcessPool as error:
        raise PairPMError(
            f"--num-proc {num_proc}: a process ended before its work was done; all are required to live; was memory "
            "short? try fewer"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _map_in_order(pool: ProcessPoolExecutor, convert: Callable, chunks: Iterable, num_proc: int) -> Iterator:
    """Yield the results in order, with only a few chunks in flight, so that memory stays flat."""
    in_flight = deque()
    for chunk in chunks:
        in_flight.append(pool.submit(convert, chunk))
        if len(in_flight) > 2 * num_proc:
            yield in_flight.popleft().result()
    while in_flight:
        yield in_flight.popleft().result()


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # The queue's writing end is open in every worker, so none of them would notice a parent that was killed.
    multiprocessing.parent_process().join()
    os._exit(1)
