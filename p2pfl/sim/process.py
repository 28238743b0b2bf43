"""The life of a simulated process: what belongs to it happens only while it lives, and waits while it is stopped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from p2pfl.sim.clock import Action, Clock, Scheduled, SiteClock


class Process(ABC):
    """Everything is entered for the present life; ``life`` counts processes, and an older one's actions are void."""

    def __init__(self, world_clock: Clock) -> None:
        self.clock = SiteClock()
        self.alive = False
        self.frozen = False
        self.frozen_since = 0.0
        self.life = 0
        self._time = world_clock
        self._reset()

    def _reset(self) -> None:
        self._timers: dict[str, tuple[float, Scheduled]] = {}
        self._held: list[Action] = []
        self._worker_free = self._time.now

    @property
    def now(self) -> float:
        """The process's own clock."""
        return self.clock.at(self._time.now)

    @abstractmethod
    def fire(self, name: str) -> None:
        """A timer is due."""

    def begin_life(self) -> None:
        """A new process."""
        self.life += 1
        self.alive, self.frozen = True, False
        self._reset()

    def end_life(self) -> None:
        """It ends at once."""
        self.life += 1
        self.alive = self.frozen = False
        for _, entry in self._timers.values():
            self._time.cancel(entry)

    def hold(self) -> None:
        """The process is stopped (SIGSTOP): nothing is handled, time goes on."""
        self.frozen, self.frozen_since = True, self._time.now

    def release(self) -> None:
        """It goes on: first whatever came or was due meanwhile, in that order."""
        self.frozen = False
        held, self._held = self._held, []
        life = self.life
        for action in held:
            if self.life == life:
                action()

    # --- what is to happen later

    def later(self, seconds: float, action: Action) -> None:
        """Do something in a while, if this process still lives then; when it is stopped, as soon as it goes on."""
        self._time.after(seconds, self._of_this_life(action))

    def work(self, seconds: float, action: Action) -> None:
        """The worker's next piece of work: it does one after the other, in the order they were given."""
        self._worker_free = max(self._worker_free, self._time.now) + seconds
        self._time.at(self._worker_free, self._of_this_life(action))

    def guarded(self, done: Callable[[str | None], None]) -> Callable[[str | None], None]:
        """An answer that only this process takes."""
        life = self.life

        def answer(problem: str | None) -> None:
            self._enter(life, lambda: done(problem))

        return answer

    def enter(self, action: Action) -> None:
        """Something reaches the process from outside now."""
        self._enter(self.life, action)

    def _of_this_life(self, action: Action) -> Action:
        life = self.life
        return lambda: self._enter(life, action)

    def _enter(self, life: int, action: Action) -> None:
        if life != self.life or not self.alive:
            return
        if self.frozen:
            self._held.append(action)
        else:
            action()

    # --- timers of the machine, on the process's own clock

    def set_timer(self, name: str, at: float) -> None:
        """Fire when the own clock shows ``at``; replaces an earlier timer of that name."""
        self.cancel_timer(name)
        entry = self._time.at(self.clock.when(at), self._of_this_life(lambda: self._due(name, entry)))
        self._timers[name] = (at, entry)

    def cancel_timer(self, name: str) -> None:
        """It is no longer needed."""
        known = self._timers.pop(name, None)
        if known is not None:
            self._time.cancel(known[1])

    def _due(self, name: str, entry: Scheduled) -> None:
        known = self._timers.get(name)
        if known is not None and known[1] is entry:  # one that was held back may have been replaced meanwhile
            del self._timers[name]
            self.fire(name)

    def skew(self, rate: float, offset: float) -> None:
        """From now on the own clock runs at ``rate``, after a jump by ``offset`` seconds."""
        self.clock.skew(self._time.now, rate, offset)
        for name, (at, _) in list(self._timers.items()):
            self.set_timer(name, at)
