"""Who acts for the whole fleet: one service, one driver, fenced off from those before them.

A term has a number that only grows. Whoever holds it beats; whoever waits for it watches the beats
by its own clock, so that no two machines' clocks have to agree.
"""

from __future__ import annotations

import sqlalchemy as sa

from fleet.clock import Clock
from fleet.store.base import SupersededError
from fleet.store.sql import SqlStore
from fleet.store.tables import terms


class Term:
    """The right to act in a role, for as long as nobody else takes it."""

    def __init__(self, store: SqlStore, role: str, holder: str) -> None:
        """Nothing is taken yet; `holder` is what others are told."""
        self._store = store
        self.role = role
        self.holder = holder
        self.number = 0

    def take(self) -> int:
        """Take it from whoever has it; returns its number."""
        return self._take(None)

    def _take(self, seen: tuple[int, int] | None) -> int:
        """Take it, where given only if number and beat are still those that were `seen`."""
        with self._store.writing() as connection:
            connection.execute(
                self._store.inserting_new(terms),
                {"role": self.role, "holder": "", "number": 0, "beat": 0},
            )
            statement = sa.update(terms).where(terms.c.role == self.role)
            if seen is not None:
                statement = statement.where(terms.c.number == seen[0], terms.c.beat == seen[1])
            row = connection.execute(
                statement.values(
                    holder=self.holder, number=terms.c.number + 1, beat=terms.c.beat + 1
                ).returning(terms.c.number)
            ).first()
        self.number = int(row[0]) if row is not None else 0
        return self.number

    def beat(self) -> None:
        """Say that the holder lives. Raises `SupersededError` where somebody else has taken it."""
        with self._store.writing() as connection:
            beaten = connection.execute(
                sa.update(terms)
                .where(terms.c.role == self.role, terms.c.number == self.number)
                .values(beat=terms.c.beat + 1)
            )
        if not beaten.rowcount:
            raise SupersededError(f"the {self.role} is {self.seen()[2]} now")

    def give_up(self) -> None:
        """Let whoever waits have it at once."""
        with self._store.writing() as connection:
            connection.execute(
                sa.update(terms)
                .where(terms.c.role == self.role, terms.c.number == self.number)
                .values(holder="", beat=terms.c.beat + 1)
            )
        self.number = 0

    def seen(self) -> tuple[int, int, str]:
        """Number, beat and holder as they stand."""
        query = sa.select(terms.c.number, terms.c.beat, terms.c.holder)
        with self._store.reading() as connection:
            row = connection.execute(query.where(terms.c.role == self.role)).first()
        return (0, 0, "") if row is None else (row[0], row[1], row[2])

    def waiting(self, clock: Clock, silence_seconds: float) -> Candidate:
        """A candidate for the term."""
        return Candidate(self, clock, silence_seconds)


class Candidate:
    """Waits until a term's holder has been silent for so long, or has given it up."""

    def __init__(self, term: Term, clock: Clock, silence_seconds: float) -> None:
        """Nothing has been seen yet."""
        self._term = term
        self._clock = clock
        self._silence = silence_seconds
        self._last: tuple[int, int, str] | None = None
        self._since = 0.0

    def try_to_take(self) -> bool:
        """Look once; True where the term is ours from now on."""
        seen = self._term.seen()
        now = self._clock.monotonic()
        if seen != self._last:
            self._last, self._since = seen, now
        if seen[2] and now - self._since < self._silence:
            return False
        return bool(self._term._take(seen[:2]))
