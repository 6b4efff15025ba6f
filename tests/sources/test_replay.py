"""The replay keeps what was added last, and gives it back in order."""

import torch

from distillery.core.specs import TaskSpec
from distillery.sources.replay import Replay


def test_replay_keeps_the_latest_entries_in_order() -> None:
    spec = TaskSpec.of_sizes((100,), 7, 3)
    replay = Replay(5, num_learners=2, num_streams=4, spec=spec, device="cpu")
    streams, yes = torch.arange(4), torch.ones(4, dtype=torch.bool)
    for entry in range(8):
        seen = (entry + 10 * streams)[:, None]
        replay.append(seen, streams, seen[:, 0].float(), continues=yes, acted=yes if entry % 2 else ~yes)
    assert replay.num_entries == 5
    # Of the first learner its second actor from the oldest on, and its first to the newest; of the second likewise.
    actors, starts = torch.tensor([[1, 0], [0, 1]]), torch.tensor([[0, 2], [2, 0]])
    drawn = replay.sequences(actors, starts, 3)
    expected = [[[13, 14, 15], [5, 6, 7]], [[25, 26, 27], [33, 34, 35]]]
    assert drawn.observations[..., 0].tolist() == expected
    assert drawn.rewards.long().tolist() == expected
    assert drawn.actions[..., 0].tolist() == [[1, 0], [2, 3]]
    assert drawn.acted.tolist() == [[[True, False, True]] * 2] * 2
    assert drawn.continues.all()
