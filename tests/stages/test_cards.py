"""Cards say what the committed files say, one for everything that is shipped, and name what is missing."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from distillery.core.protocols import SequenceModel
from distillery.evaluation.in_context import weights_checksum
from distillery.stages.cards import FOLDER, REMEDY, main, make_cards, read_committed

ROOT = Path(__file__).parents[2]
READ = ("data/resolved", "data/validations", "data/reports/metrics.json", "src/distillery", "dvc.lock", "params.yaml")


@pytest.fixture(scope="module")
def cards() -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return make_cards(read_committed())


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what cards are made from, to break."""
    for name in READ:
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failure() -> str:
    with pytest.raises(SystemExit) as caught:
        main([])
    return str(caught.value)


def test_committed_cards_are_what_the_command_writes(cards: dict[str, str]) -> None:
    committed = {path.name: path.read_text() for path in (ROOT / FOLDER).iterdir()}
    assert committed == cards, "run `python -m distillery.stages.cards` and commit docs/cards"


def test_everything_that_is_shipped_has_a_card(cards: dict[str, str]) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    expected = {f"dataset_{dataset}.md" for dataset in params["datasets"]}
    expected |= {f"checkpoint_{one}_{agent}.md" for one in params["experiments"] for agent in params["agents"]}
    assert set(cards) == expected | {"checkpoint_demo.md", "index.md"}


def test_a_dataset_card_has_the_hashes_the_splits_and_the_settings(cards: dict[str, str]) -> None:
    card = cards["dataset_dark_room-q_learning.md"]
    validation = json.loads((ROOT / "data" / "validations" / "dark_room.json").read_text())
    for kind in ("learning", "expert"):
        assert validation[kind]["content_hash"] in card
        assert f"{validation[kind]['num_steps']:,}" in card
    for row in ("| `train` | 57 |", "| `validation` | 8 |", "| `held_out` | 16 |"):
        assert row in card
    (settings,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    resolved = yaml.safe_load((ROOT / "data" / "resolved" / "datasets" / "dark_room-q_learning.yaml").read_text())
    told = yaml.safe_load(settings)
    assert (told["tasks"], told["sources"]) == (resolved["tasks"], resolved["sources"])


def test_a_checkpoint_card_has_the_metrics(cards: dict[str, str]) -> None:
    numbers = json.loads((ROOT / "data" / "reports" / "metrics.json").read_text())["dark_room"]["ad"]["held_out"]
    low, high = numbers["oracle_fraction_ci95"]
    assert f"{numbers['oracle_fraction']:.3f} ({low:.3f} to {high:.3f})" in cards["checkpoint_dark_room_ad.md"]
    assert "shows no learning" in cards["checkpoint_dark_room_ed.md"]


def test_the_demo_card_loads_the_weights_it_names(cards: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", cards["checkpoint_demo.md"], re.DOTALL)
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    exec(code, names)
    model = names["model"]
    assert isinstance(model, SequenceModel)
    assert weights_checksum(model) in cards["checkpoint_demo.md"]


@pytest.mark.parametrize(
    "name",
    [
        "data/resolved/datasets/dark_room-explorer.yaml",
        "data/resolved/experiments/dark_room.yaml",
        "data/validations/dark_room.json",
        "data/reports/metrics.json",
        "src/distillery/demo_checkpoint/model.json",
        "dvc.lock",
    ],
)
def test_a_missing_file_is_named_with_the_remedy(copy: Path, name: str) -> None:
    (copy / name).unlink()
    message = failure()
    assert message == f"error: {name} does not exist; {REMEDY}"
    assert not (copy / FOLDER).exists()


def test_what_was_not_made_yet_is_named(copy: Path) -> None:
    lock = yaml.safe_load((copy / "dvc.lock").read_text())
    del lock["stages"]["train@dark_room-ed"]
    (copy / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert failure().startswith("error: dvc.lock lists no models/dark_room/ed; run `dvc repro`")


@pytest.mark.parametrize(
    ("name", "content", "card"),
    [
        ("data/reports/metrics.json", "{}", "models/dark_room/ad needs 'dark_room'"),
        ("data/validations/dark_room.json", "{}", "models/dark_room/ad needs 'learning'"),
        ("data/validations/dark_room.json", '{"learning": {"a": 1}}', "data/histories/dark_room-q_learning needs"),
        ("src/distillery/demo_checkpoint/model.json", "{}", "src/distillery/demo_checkpoint needs 'training'"),
    ],
)
def test_a_missing_field_is_named_with_the_card(copy: Path, name: str, content: str, card: str) -> None:
    (copy / name).write_text(content)
    message = failure()
    assert message.startswith(f"error: the card of {card}")
    assert message.endswith(REMEDY) and "which is in none of" in message


def test_a_card_of_what_is_gone_is_removed(copy: Path) -> None:
    old = copy / FOLDER / "dataset_old.md"
    old.parent.mkdir(parents=True)
    old.write_text("gone")
    main([])
    assert not old.exists()
    assert (copy / FOLDER / "index.md").exists()


def test_a_checkpoint_older_than_the_data_says_so(copy: Path) -> None:
    path = copy / "src" / "distillery" / "demo_checkpoint" / "model.json"
    values = json.loads(path.read_text())
    values["training"]["content_hash"] = "0" * 64
    path.write_text(json.dumps(values))
    assert "the checkpoint is older" in make_cards(read_committed())["checkpoint_demo.md"]
