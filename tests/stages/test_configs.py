"""Every configuration composes, builds, and names a class at its own path."""

import copy
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module

import distillery
from distillery.stages.resolve import check, compose_entry, load_params, main

CONF = Path(distillery.__file__).parent / "conf"
GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()
}
CHOICES = [(group, choice) for group, choices in GROUPS.items() for choice in choices]
BANDIT = [
    "tasks=adversarial_bandit",
    "histories.contexts.keep_every_episode=1",
    "histories.contexts.sequence_length=100",
    "models.context_length=100",
]
# A choice that fits only together with others.
COMPANIONS = {
    ("models", "causal_transformer_paper"): ["histories.contexts.sequence_length=80"],
    ("sources", "dqn"): ["histories.contexts.keep_every_episode=1"],
    ("sources", "explorer"): ["histories.contexts.keep_every_episode=1"],
    ("sources", "explorer_bandit"): BANDIT,
    ("sources", "explorer_hard"): ["histories.contexts.keep_every_episode=1"],
    ("sources", "explorer_key_to_door"): ["histories.contexts.keep_every_episode=1"],
    ("sources", "explorer_permuted"): ["tasks=dark_room_permuted", "histories.contexts.keep_every_episode=1"],
    ("sources", "pose_searcher"): ["tasks=watermaze_small", "histories.contexts.keep_every_episode=1"],
    ("sources", "pose_searcher_sidestep"): [
        "tasks=watermaze_small",
        "histories.contexts.keep_every_episode=1",
    ],
    ("sources", "ucb"): BANDIT,
    ("sources", "thompson"): BANDIT,
    ("training", "rl2"): ["agent=rl2"],
    ("training", "rl2_bandit"): ["agent=rl2"],
}


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda value: str(value))
def test_every_choice_composes_and_can_run(group, choice):
    if choice.endswith("minigrid"):
        pytest.importorskip("minigrid", reason="needs the extra environments")
    if not choice.startswith("__"):
        with initialize_config_module("distillery.conf", version_base="1.3"):
            config = compose("config", [f"{group}={choice}", *COMPANIONS.get((group, choice), [])])
        assert group == "experiment" or config[group]
        check(config)


@pytest.mark.parametrize("section", ["datasets", "experiments"])
def test_every_entry_of_params_composes(section):
    params = load_params()
    for name in params[section]:
        config = compose_entry(params, section, name)
        check(config)
        assert config.dataset in params["datasets"]


@pytest.fixture
def params() -> dict:
    return copy.deepcopy(load_params())


def refusal(params: dict, name: str = "dark_room") -> str:
    with pytest.raises(ValueError) as caught:
        check(compose_entry(params, "experiments", name))
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"lrr": 1}}, ["lrr"]),
        ({"models": {"context_length": 900}}, ["models.context_length=900", "sequence_length=400"]),
        ({"histories": {"contexts": {"sequence_length": 4000}}}, ["sequence_length=4000", "600 steps"]),
        ({"models": {"positions": "absolute"}}, ["context_length=200 must equal", "sequence_length=400"]),
        ({"sources": {"learning_rate": 0.5}}, ["changes 'sources'", "dark_room-q_learning"]),
        ({"tasks": {"walls": "wrap"}}, ["changes 'tasks'"]),
        ({"agents": {"ad": {"histories": "lerning"}}}, ["lerning"]),
        ({"agents": {"ad": {"patience_validations": 0}}}, ["patience_validations", "0"]),
        ({"agents": {"ad": {"keeps": "first"}}}, ["keeps", "first"]),
        ({"agents": {"ed": {"patience_validations": 2}}}, ["keeps the last weights", "set it to null"]),
        ({"histories": {"contexts": {"start": "rnd"}}}, ["start", "rnd"]),
        ({"histories": {"contexts": {"keep_every_episode": 0}}}, ["keep_every_episode", "0"]),
        ({"training": {"learner": {"warmup_fraction": 5}}}, ["warmup_fraction", "5"]),
        ({"training": {"learner": {"label_smoothing": 3}}}, ["label_smoothing", "3"]),
        ({"training": {"learner": {"gradient_clip": -1}}}, ["gradient_clip", "-1"]),
        ({"models": {"attention_dropout": 2}}, ["dropout", "2"]),
        ({"training": {"learner": {"optimiser": "sgd"}}}, ["sgd"]),
        ({"evaluation": {"lifetimes": {"num_seeds": 0}}}, ["num_seeds", "0"]),
        ({"models": {"_target_": "os.system"}}, ["os.system"]),
        ({"models": {"width": 65}}, ["65"]),
        ({"models": {"num_layers": 0}}, ["num_layers", "0"]),
        ({"models": {"dropout": 1.5}}, ["dropout", "1.5"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": "three"}, ["three"]),
        ({"runtime": {"device": "gpu"}}, ["gpu"]),
    ],
    ids=str,
)
def test_bad_values_are_refused_before_any_work(params, changes, words):
    params["experiments"]["dark_room"]["set"] = changes
    message = refusal(params)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": {"num_held_out": 80}}, ["num_held_out=80", "train"]),
        ({"tasks": {"num_held_out": 0}}, ["'held_out' would have 0 tasks"]),
        ({"tasks": {"start": [9, 9]}}, ["[9, 9]"]),
        ({"tasks": {"episode_steps": 4}}, ["gains nothing", "task_id", "raise tasks.episode_steps"]),
        ({"sources": {"learning_rate": 1.5}}, ["learning_rate", "1.5"]),
        ({"histories": {"collection": {"runs_per_task": 0}}}, ["runs_per_task", "0"]),
        ({"histories": {"collection": {"selection": {"min_final_fraction": 2}}}}, ["min_final_fraction", "2"]),
    ],
    ids=str,
)
def test_bad_values_of_a_dataset_are_refused(params, changes, words):
    params["datasets"]["dark_room-q_learning"]["set"] = changes
    message = refusal(params)
    assert all(word in message for word in words), message


def test_unknown_names_are_refused(params):
    params["experiments"]["dark_room"]["groups"] = {"models": "lstmm"}
    assert "lstmm" in refusal(params)
    params["experiments"]["dark_room"] = {"dataset": "nowhere"}
    assert "'nowhere'" in refusal(params)
    params["experiments"]["dark_room"] = {"dataset": "dark_room-q_learning", "sets": {}}
    assert "sets" in refusal(params)
    assert "'dark_hall'" in refusal(params, "dark_hall")
    params["experiments"]["dark_room"] = None
    assert "names the dataset" in refusal(params)


def test_numbers_as_dvc_writes_them_are_numbers(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("datasets: {}\nexperiments: {a: {set: {training: {learner: {learning_rate: 1e-05}}}}}\n")
    assert load_params(path)["experiments"]["a"]["set"]["training"]["learner"]["learning_rate"] == 1e-5


def test_two_experiments_may_share_a_dataset_and_differ(params):
    params["experiments"]["wide"] = {"dataset": "dark_room-q_learning", "set": {"models": {"width": 128}}}
    wide, plain = (compose_entry(params, "experiments", name) for name in ("wide", "dark_room"))
    assert (wide.name, wide.dataset, wide.models.width) == ("wide", plain.dataset, 128)
    assert wide.tasks == plain.tasks
    assert wide.sources == plain.sources


def test_the_command_line_ends_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["experiments", "dark_room"])
    assert str(caught.value).startswith("error: params.yaml cannot be read")
    Path("params.yaml").write_text(yaml.safe_dump({"datasets": {}}))
    with pytest.raises(SystemExit, match="error: params.yaml must hold a mapping 'experiments'"):
        main(["experiments", "dark_room"])


def test_resolved_files_hold_no_time_host_or_environment():
    for file in CONF.rglob("*.yaml"):
        text = file.read_text()
        assert "${now:" not in text
        assert "${oc.env:" not in text
        assert "${hydra:" not in text
