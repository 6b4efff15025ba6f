"""The stage over experiments of several task families, and over none that is a room."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from distillery.sources.explorer import Explorer
from distillery.sources.pose_searcher import PoseSearcher
from distillery.sources.ucb import UCB
from distillery.stages.report import FOLDER, NO_ROOM, goal_maps, lifetimes, read_results, report
from distillery.tasks.adversarial_bandit import AdversarialBandit
from distillery.tasks.dark_key_to_door import DarkKeyToDoor
from distillery.tasks.dark_room import DarkRoom
from distillery.tasks.watermaze import Watermaze
from tests.reports.conftest import ROOM, write_experiment, write_params

DOOR = {"num_train": 20, "num_validation": 4, "num_held_out": 30}
HARD = ROOM | {"width": 17, "height": 17, "reward": "once", "num_train": 30}
BANDIT = {"num_train": 20, "num_validation": 5, "num_held_out": 30, "num_seen": 20, "num_uniform": 20}
MAZE = {"height": 18, "width": 24, "num_tasks": 12, "num_train": 4, "num_validation": 2, "num_held_out": 3}


def target(module: str, name: str, settings: dict) -> dict:
    return {"_target_": f"distillery.tasks.{module}.{name}", **settings}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """Outputs of five experiments; the shortest lifetimes are one episode, observations of pixels are not kept."""
    root = tmp_path_factory.mktemp("families")
    hard = {key: value for key, value in HARD.items() if key != "_target_"}
    write_experiment(root, "room", tasks=DarkRoom(), settings=ROOM, source=Explorer(num_episodes=20))
    write_experiment(
        root,
        "hard",
        tasks=DarkRoom(**hard),
        settings=HARD,
        source=Explorer(num_episodes=30),
        num_episodes=12,
        num_seeds=1,
    )
    write_experiment(
        root,
        "key_to_door",
        tasks=DarkKeyToDoor(**DOOR),
        settings=target("dark_key_to_door", "DarkKeyToDoor", DOOR),
        source=Explorer(num_episodes=8),
        reference_fraction=0.905,
    )
    write_experiment(
        root,
        "bandit",
        tasks=AdversarialBandit(**BANDIT),
        settings=target("adversarial_bandit", "AdversarialBandit", BANDIT),
        source=UCB(num_episodes=1),
        num_episodes=1,
        splits=("held_out", "seen", "uniform"),
    )
    write_experiment(
        root,
        "watermaze",
        tasks=Watermaze(**MAZE),
        settings=target("watermaze", "Watermaze", MAZE),
        source=PoseSearcher(num_episodes=4),
        num_episodes=4,
        num_seeds=1,
    )
    return root


def reported(pipeline: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, experiments: list[str]) -> Path:
    """A copy of the outputs with the report of some experiments."""
    root = folder / "copy"
    shutil.copytree(pipeline, root)
    write_params(root, experiments)
    monkeypatch.chdir(root)
    report()
    return root / FOLDER


def text_of(page: Path) -> str:
    """What a reader sees, in one line."""
    seen = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(seen.split())


def test_every_family_beside_every_other(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = reported(pipeline, tmp_path, monkeypatch, ["room", "hard", "key_to_door", "bandit", "watermaze"])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["bandit"]["ad"]) == ["held_out", "seen", "uniform"]
    assert list(metrics["watermaze"]["ad"]) == ["held_out", "train"]
    text = text_of(folder / "index.html")
    for sentence in (
        "Put on tasks it was never trained on",
        "or step after step where a lifetime is one episode.",
        "in the only episode, the oracle",
        "in all 4 episodes, the oracle",
        "Tasks of the split 'seen'",
        "(room 0.852, hard 0.852, key_to_door 0.905, bandit 0.852, watermaze 0.852)",
        "as parts of the oracle's return",
        "key_to_door: AD on held-out tasks, the 24 worst of 30",
        "watermaze: AD on held-out tasks, worst first",
        "in a room of another size, the one with the median there",
        "Hatched goals are not reported",
    ):
        assert sentence in text.replace("&#39;", "'"), sentence
    assert "episode \N{EN DASH}" not in text
    assert len(re.findall(r'<img src="data:image', (folder / "index.html").read_text())) == 5


def test_only_rooms_are_drawn_and_each_with_a_goal_of_its_own_size(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pipeline)
    results = {name: read_results(name, ["ad", "ed"]) for name in ("watermaze", "key_to_door", "room", "hard")}
    assert list(goal_maps(results)) == list(lifetimes(results)) == ["room", "hard"]
    assert {name: life.width for name, life in lifetimes(results).items()} == {"room": 9, "hard": 17}
    assert len({result.family for result in results.values()}) == 4
    assert [name for name, result in results.items() if result.published] == ["room"]


def test_a_room_whose_actions_have_no_names_is_no_map_of_goals(pipeline: Path, tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "copy"
    shutil.copytree(pipeline, root)
    resolved = root / "data/resolved/experiments/room.yaml"
    resolved.write_text(resolved.read_text().replace("num_action_permutations: 1", "num_action_permutations: 120"))
    monkeypatch.chdir(root)
    result = read_results("room", ["ad", "ed"])
    assert (result.size, result.published, result.steps) == (None, None, None)


@pytest.mark.parametrize("experiments", [["bandit"], ["key_to_door", "watermaze"]])
def test_without_a_room_its_pictures_are_one_sentence_and_the_page_has_none(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiments: list[str]
) -> None:
    folder = reported(pipeline, tmp_path, monkeypatch, experiments)
    plain = (folder / "goal_map.png").read_bytes()
    assert plain == (folder / "filmstrip.png").read_bytes()
    assert len(plain) < 20_000
    with Image.open(io.BytesIO((folder / "lifetime.gif").read_bytes())) as image:
        assert image.n_frames == 1
    page = (folder / "index.html").read_text()
    assert len(re.findall(r'<img src="data:image', page)) == 2
    text = text_of(folder / "index.html")
    assert "One lifetime" not in text
    assert "Goal by goal" not in text
    assert "goals" not in text
    assert NO_ROOM not in text, "what is not there needs no excuse on the page"
    if experiments == ["bandit"]:
        assert "learn by itself, step after step." in text
        assert "Look for" not in text


def test_an_evaluation_of_other_splits_than_the_experiments_is_one_error(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(pipeline, root)
    resolved = root / "data/resolved/experiments/bandit.yaml"
    resolved.write_text(resolved.read_text().replace("  - uniform", "  - uniform\n  - train"))
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match=r"bandit/ad/summary\.json lacks the splits train; run `dvc repro`"):
        read_results("bandit", ["ad", "ed"])
