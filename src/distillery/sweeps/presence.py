"""Who works on a journal: a lock that the kernel gives back however a process ends, and the mending of a cut line."""

import fcntl
from pathlib import Path


class Presence:
    """A shared lock on a file beside the journal, held as long as this process works on it."""

    def __init__(self, journal: Path) -> None:
        journal.parent.mkdir(parents=True, exist_ok=True)
        self._file = journal.with_name(journal.name + ".workers").open("a")

    def __enter__(self) -> "Presence":
        fcntl.flock(self._file, fcntl.LOCK_SH)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def alone(self) -> bool:
        """Whether nobody else works on the journal; if so, nobody else can begin before `share`."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.share()
            return False
        return True

    def share(self) -> None:
        """Lets others begin."""
        fcntl.flock(self._file, fcntl.LOCK_SH)


def repair(journal: Path) -> None:
    """Cuts off a last line whose writer died in the middle of it; Optuna could not append to it."""
    if journal.is_file() and (content := journal.read_bytes()) and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
