"""Several servers of one model: which may be asked, which has the least to do, and which must be examined first.

A server that failed rests, and one that was idle may be another by now. Both are examined before their next request,
in a thread of their own: nobody waits for a server while another one answers.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from pair_pm.engines.vllm_server import VLLMServer
from pair_pm.errors import EngineError

logger = logging.getLogger(__name__)

PRESENCE_S = 5.0  # a connection and the first answer of an examination hardly take longer
_SHORTEST_REST_S, _LONGEST_REST_S = 0.5, 10.0
_UNSEEN_S = 5.0  # no server starts faster: one that was idle for longer may be another by now


class Member:
    """A server, and what is known of it; only its fleet writes here, under its lock."""

    def __init__(self, server: VLLMServer):
        self.server = server
        self.load = 0  # of the requests under way
        self.fault: Exception | None = None
        self.failed_at = 0.0  # when it was first known to be away
        self.rest_s = _SHORTEST_REST_S
        self.rests_until = 0.0
        self.idle_since = time.monotonic()
        self.examined_since: float | None = None  # None while it is not

    def may_be_asked(self) -> bool:
        """Return whether it answers, as far as is known."""
        return self.fault is None and (self.load > 0 or time.monotonic() - self.idle_since < _UNSEEN_S)

    def is_due(self) -> bool:
        """Return whether an examination should begin."""
        return not self.may_be_asked() and self.examined_since is None and time.monotonic() >= self.rests_until

    def is_believed_present(self) -> bool:
        """Return whether it may be asked, or could be when it was last, and has not long been under examination."""
        is_new = self.examined_since is None or time.monotonic() - self.examined_since < PRESENCE_S
        return self.fault is None and is_new

    def describe_absence(self) -> str:
        """Return what it said last."""
        return str(self.fault or f"{self.server.url}: has left an examination open for {PRESENCE_S:g} s")


class Fleet:
    """Servers that share the load; safe to use from several threads.

    Args:
        servers: They have just been found to answer.
        examine: Raises what speaks against asking a server again.
        most_load: That each may have under way, unless a single request is more; in the callers' unit.
    """

    def __init__(self, servers: Sequence[VLLMServer], examine: Callable[[VLLMServer], None], most_load: int):
        self._changed = threading.Condition()  # held for moments, because every answer needs it
        self._members = [Member(server) for server in servers]  # the one first that was not chosen for longest
        self._examine_server = examine
        self._most_load = most_load
        self._line: deque[object] = deque()  # of threads that wait for room, so that large requests get theirs

    def list_by_load(self) -> list[Member]:
        """Return all members: those that may be asked first, then by what they have under way."""
        with self._changed:
            return sorted(self._members, key=lambda member: (not member.may_be_asked(), member.load))

    def claim(self, load: int, home: Member | None, is_over: Callable[[], bool]) -> Member | None:
        """Return a server that may be asked and has room, waiting for one; the load is its until `release`.

        Args:
            load: Of the request.
            home: Taken where it can be; else the one with the least under way is, in turn among equals.
            is_over: Whether there is nothing to wait for any more; then None is returned.
        """
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                while not is_over():
                    self._examine_due()
                    if self._line[0] is place and (member := self._choose(load, home)):
                        member.load += load
                        return member
                    self._changed.wait(_SHORTEST_REST_S)
                return None
            finally:
                self._line.remove(place)
                self._changed.notify_all()

    def release(self, member: Member, load: int) -> None:
        """Take the load of a request off its server."""
        with self._changed:
            member.load -= load
            member.idle_since = time.monotonic()
            self._changed.notify_all()

    def exclude(self, server: VLLMServer, fault: Exception) -> None:
        """Let a server rest after a failure."""
        with self._changed:
            [member] = [member for member in self._members if member.server is server]
            if member.fault is None:  # else it rests already, for another request's
                self._exclude(member, fault)

    def check_presence(self) -> None:
        """Return when a server may be asked, at once where one is known to answer.

        Otherwise those whose rest is over, or that nobody asked for some time, are examined side by side, which takes
        `PRESENCE_S` at most. Meanwhile other threads are told what was known before.

        Raises:
            EngineError: with what each said.
        """
        with self._changed:
            if any(member.may_be_asked() for member in self._members):
                return
            examined = self._examine_due()
            self._changed.wait_for(
                lambda: (
                    any(member.may_be_asked() for member in self._members)
                    or all(member.examined_since is None for member in examined)
                ),
                PRESENCE_S,
            )
            if not any(member.is_believed_present() for member in self._members):
                said = "; ".join(member.describe_absence() for member in self._members)
                raise EngineError(f"no server answers ({said}); one that does is required; start it again")

    def check_absence(self, longest_s: float) -> None:
        """Raise, as `check_presence`, when all servers have been known to be away for so long; examine what is due."""
        with self._changed:
            self._examine_due()
            all_failed = all(member.fault for member in self._members)
            away_since = max(member.failed_at for member in self._members)
        if all_failed and time.monotonic() - away_since >= longest_s:
            self.check_presence()

    def list_faults(self) -> list[str]:
        """Return what servers that are away said last."""
        with self._changed:
            return [str(member.fault) for member in self._members if member.fault]

    def _choose(self, load: int, home: Member | None) -> Member | None:
        able = [
            member
            for member in self._members
            if member.may_be_asked() and (member.load == 0 or member.load + load <= self._most_load)
        ]
        chosen = home if home in able else min(able, key=lambda member: member.load, default=None)
        if chosen is not None:
            self._members.remove(chosen)
            self._members.append(chosen)
        return chosen

    def _examine_due(self) -> list[Member]:
        """Begin the examinations that are due; return the members that they are of."""
        due = [member for member in self._members if member.is_due()]
        for member in due:
            threading.Thread(target=self._examine, args=(member,), daemon=True).start()
            member.examined_since = time.monotonic()
        return due

    def _examine(self, member: Member) -> None:
        fault = None
        try:
            self._examine_server(member.server)
        except Exception as error:  # another model is as bad as none, and an answer that breaks our code no better
            fault = error
        with self._changed:
            member.examined_since = None
            if fault is not None:
                self._exclude(member, fault)
            else:
                if member.fault is not None:
                    logger.warning("%s: answers again", member.server.url)
                member.fault, member.rest_s, member.idle_since = None, _SHORTEST_REST_S, time.monotonic()
            self._changed.notify_all()

    def _exclude(self, member: Member, fault: Exception) -> None:
        if member.fault is None:
            logger.warning("%s; others are asked meanwhile, and it again when it answers", fault)
            member.failed_at = time.monotonic()
        member.fault = fault
        member.rests_until = time.monotonic() + member.rest_s
        member.rest_s = min(2 * member.rest_s, _LONGEST_REST_S)
