"""What came of a check, and what the checks of a claim come to."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

STATUSES = MET, REFUTED, UNDECIDED, UNRUN = "yes", "no", "undecided", "not run"
HOLDS, IN_PART, DOES_NOT = "holds", "holds in part", "does not hold"
AT_MOST_PART, OPEN, NOT_RUN = "holds in part at most", "is undecided", "not run yet"


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        status: `MET`, `REFUTED`, `UNDECIDED` or `UNRUN`.
        text: the numbers in words.
        is_final: whether all trainings are there that it is to rest on.
    """

    status: str
    text: str
    is_final: bool


@dataclass(frozen=True)
class Verdict:
    """What came of a claim.

    Attributes:
        word: `HOLDS`, `IN_PART`, `DOES_NOT`, `AT_MOST_PART`, `OPEN` or `NOT_RUN`.
        is_final: whether all its checks are.
        counts: checks by status.
    """

    word: str
    is_final: bool
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """In words."""
        return self.word if self.is_final or self.word == NOT_RUN else f"{self.word} so far"

    @property
    def told_counts(self) -> str:
        """How many checks came out how, in words."""
        return ", ".join(f"{self.counts[status]} {status}" for status in STATUSES if self.counts.get(status))


def verdict_of(outcomes: Sequence[Outcome]) -> Verdict:
    """What the outcomes of a claim's checks come to.

    It holds if all are met, does not hold if all are refuted, holds in part if some are met and others refuted, and
    holds in part at most if some are refuted, none is met and others are open; else it is undecided.
    """
    counts = Counter(outcome.status for outcome in outcomes)
    is_final = all(outcome.is_final for outcome in outcomes)
    if counts.keys() <= {UNRUN}:
        return Verdict(NOT_RUN, False, counts)
    if MET in counts and REFUTED in counts:
        return Verdict(IN_PART, is_final, counts)
    if len(counts) == 1 and UNDECIDED not in counts:
        return Verdict(HOLDS if MET in counts else DOES_NOT, is_final, counts)
    return Verdict(AT_MOST_PART if REFUTED in counts else OPEN, is_final, counts)
