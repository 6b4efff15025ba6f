"""A study runs for real: shares what is equal, adds up over sittings, resumes, and becomes a page."""

import html
import io
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from omegaconf import OmegaConf
from PIL import Image

from distillery.papers.results import Run, SplitResult, add_run, read_runs, withdraw_runs
from distillery.papers.statistics import StudyNumbers
from distillery.papers.study import Study, load_claims, load_study, study_names
from distillery.papers.verdicts import MET, NOT_RUN, REFUTED, UNDECIDED
from distillery.reports.tables import DASH
from distillery.stages import compare, paper, study_units
from distillery.stages.paper_page import claim_rows, gathered, split_metrics, study_rows, study_values, write_page
from distillery.stages.resolve import check
from distillery.stages.study_setup import setup_sentences
from distillery.stages.study_units import digest, runtime_of, unit_of, units_of

STUDY = {
    "title": "A toy",
    "claim": "AD improves.",
    "source": "nowhere",
    "experiment": "dark_room_explorer",
    "level": 1.0,
    "splits": ["held_out", "train"],
    "overrides": [
        "tracking=none",
        "tasks.width=4",
        "tasks.height=4",
        "tasks.episode_steps=8",
        "tasks.num_validation=3",
        "tasks.num_held_out=4",
        "sources.num_episodes=8",
        "histories.collection.runs_per_task=4",
        "histories.contexts.sequence_length=64",
        "histories.contexts.batch_size=8",
        "models.context_length=32",
        "models.width=16",
        "models.num_layers=1",
        "models.feedforward_width=32",
        "training.schedule.num_updates=20",
        "training.schedule.validate_every_updates=10",
        "training.validation.num_episodes=4",
        "training.validation.num_seeds=1",
        "evaluation.lifetimes.num_episodes=12",
        "evaluation.lifetimes.num_seeds=2",
        "evaluation.train_seeds=1",
    ],
    "num_seeds": 1,
    "variants": {
        "ad": {"label": "AD", "published": 1.5, "published_curve": [[1, 0.2], [12, 1.5]], "num_seeds": 2},
        "prompted": {"overrides": ["evaluation.prompt.oracle_fraction=0.5", "evaluation.prompt.num_streams=2"]},
        "ed": {"agent": "ed"},
        "dpt": {"agent": "dpt"},
        "looking": {"attention_at": 40},
        "source": {"agent": "source"},
        "random": {"agent": "random"},
    },
    "checks": [{"text": "AD is above random", "variant": "ad", "worse": "random"}],
}


def write_study(folder: Path, values: dict) -> Study:
    (folder / "papers" / "toys").mkdir(parents=True, exist_ok=True)
    (folder / "papers" / "toys" / "toy.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return load_study("toy", folder / "papers")


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, Study]:
    """A folder in which the toy study has been run."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = write_study(folder, STUDY)
        assert paper.run_studies([(study, study.variants)], num_workers=2, num_threads=1, extra=[]) == 0
    return folder, study


@pytest.mark.slow
def test_every_run_is_written_with_its_numbers(ran):
    folder, _ = ran
    runs = read_runs("toy", folder / "data" / "results")
    assert [(run.variant, run.seed) for run in runs] == [
        ("ad", 0), ("ad", 1), ("prompted", 0), ("ed", 0), ("dpt", 0), ("looking", 0), ("source", 0), ("random", 0)
    ]  # fmt: skip
    by_name = {(run.variant, run.seed): run for run in runs}
    for run in runs:
        held_out = run.splits["held_out"]
        assert len(held_out.curve) == 12 and len(held_out.task_ids) == 4 == len(held_out.final)
        assert np.mean(held_out.curve[-10:]) == pytest.approx(np.mean(held_out.final), abs=1e-3)
        assert not set(held_out.task_ids) & set(run.splits["train"].task_ids)
    assert by_name["source", 0].data is None and by_name["ad", 0].data == by_name["dpt", 0].data
    assert by_name["ad", 0].data != by_name["ed", 0].data
    assert by_name["ad", 0].splits["held_out"].curve != by_name["ad", 1].splits["held_out"].curve
    prompted = by_name["prompted", 0].extra
    assert abs(prompted["prompt_level"] - 0.5) < 0.4 and 0 <= prompted["furthest_prompt_level"] <= 1
    attention = by_name["looking", 0].extra
    assert len(attention["weights"]) == 32 and sum(attention["weights"]) == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
def test_equal_histories_and_checkpoints_are_made_once(ran):
    folder, _ = ran
    assert len(list((folder / "data" / "histories" / "study").glob("*/learning/metadata.json"))) == 1
    # Two seeds of AD (the first serves three variants), ED, DPT.
    assert len(list((folder / "models" / "study").glob("*/*/model.json"))) == 4


@pytest.mark.slow
def test_what_is_done_is_not_run_again_and_a_change_runs_alone(ran, monkeypatch, capsys):
    folder, study = ran
    monkeypatch.chdir(folder)
    assert paper.run_studies([(study, study.variants)], num_workers=1, num_threads=1, extra=[]) == 0
    assert "0 runs to make" in capsys.readouterr().out
    changed = write_study(
        folder, STUDY | {"variants": STUDY["variants"] | {"random": {"agent": "random", "overrides": ["seed=7"]}}}
    )
    known = {run.settings for run in read_runs("toy")}
    assert {unit.settings for unit in units_of(changed)} <= known  # the seed of a run is the study's to choose
    longer = STUDY | {"overrides": [*STUDY["overrides"], "evaluation.lifetimes.num_episodes=13"]}
    units = units_of(write_study(folder, longer))
    assert not {unit.settings for unit in units} & known
    trained = {unit.config["checkpoint"] for unit in units_of(study)}
    assert {unit.config["checkpoint"] for unit in units} == trained


@pytest.mark.slow
def test_the_page_and_the_metrics_come_from_the_results_alone(ran):
    folder, study = ran
    results = folder / "data" / "results"
    values, image = study_values(study, results)
    assert image is not None
    with Image.open(io.BytesIO(image)) as picture:
        assert picture.format == "WEBP"
        picture.load()
    assert values["rows"][0]["variant"] == "AD"
    assert values["checks"][0]["mark"] in (MET, REFUTED, UNDECIDED)
    assert values["checks"][0]["numbers"].endswith(", so far of 2 trainings")
    assert (values["num_runs"], values["num_planned"]) == (8, 8)
    model, training, histories, evaluation = values["setup"]["sentences"]
    assert "1 layer of width 16; each layer sees 32 steps (4 episodes)." in model
    assert "20 updates of 8 sequences of 64 steps (8 episodes), 0.0102 million steps" in training
    assert "Explorer, 4 runs a training task" in histories and "4 held-out tasks, sampled actions" in evaluation
    assert all(run.evaluation_commit is not None for run in read_runs("toy", results) if run.data is not None)
    assert [row["prompt level"] != DASH for row in values["rows"]] == [
        row["variant"] == "prompted" for row in values["rows"]
    ]
    metrics = split_metrics(StudyNumbers(study, read_runs("toy", results)), "ad", "held_out")
    assert metrics["num_training_seeds"] == 2 and metrics["num_tasks"] == 4
    low, high = metrics["final_return_ci95"]
    assert low <= metrics["final_return"] <= high
    empty, nothing = study_values(study, folder / "nowhere")
    assert empty["verdict"] == NOT_RUN and nothing is None
    studies = [study, replace(study, checks=tuple(replace(check, claim=1) for check in study.checks))]
    (folder / "papers" / "toys" / "claims.yaml").write_text("1: It learns.\n2: It flies.\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillery.stages.paper_page.load_claims", partial(load_claims, folder=folder / "papers"))
        learns, flies = claim_rows(studies, results)
    assert learns["counts"] and learns["studies"] == [{"name": "toy", "title": "A toy"}]
    assert learns["verdict"].endswith("so far") and flies["verdict"] == NOT_RUN


@pytest.mark.parametrize("extra", [(), ("runtime.bfloat16=true", "tracking=none"), ("runtime=cuda",)])
@pytest.mark.parametrize("overrides", [("experiment=dark_room_hard",), ("models.width=8", "runtime.compile=true")])
def test_a_runtime_composed_apart_equals_one_composed_along(overrides, extra):
    assert study_units._with_runtime(overrides, extra) == study_units._composed((*overrides, *extra))


def test_what_a_digest_leaves_out_stays_in_the_configuration():
    width = load_study("width")
    assert unit_of(width, width.variants["w16"], 0).config["evaluation"]["lifetimes"]["bfloat16"] is False


def test_runs_of_other_settings_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    split = SplitResult([1.0], [0], [1.0], [1.0], [2.0], [0.0])
    width = load_study("width")
    for variant in ("w16", "w32"):
        settings = unit_of(width, width.variants["w16"], 0).settings  # right for one of them
        add_run("width", Run(variant, 0, settings, "abc", {"held_out": split}), width.variants)
    assert compare.read_result("width/w16", "held_out").scores["final"].tolist() == [[1.0]]
    with pytest.raises(ValueError, match="no result 'width/w32'.*there are width/w16$"):
        compare.read_result("width/w32", "held_out")


def test_runs_of_other_runtimes_stand_beside_each_other_and_are_told(tmp_path):
    split = SplitResult([1.0], [0], [1.0], [1.0], [2.0], [0.0])
    width = load_study("width")
    runtimes = ("", "runtime.bfloat16=true", "runtime=cuda")
    runs = [
        Run(
            "w16",
            seed,
            unit_of(width, width.variants["w16"], seed, [name] if name else []).settings,
            "abc",
            {"held_out": split},
        )
        for seed, name in enumerate(runtimes)
    ]
    assert [runtime_of(width, run) for run in runs] == list(runtimes)
    assert runtime_of(width, replace(runs[0], settings="another")) is None
    for run in runs:
        add_run("width", run, width.variants, tmp_path)
    told, _ = study_values(width, tmp_path)
    assert told["runtimes"] == "1 run with runtime.bfloat16=true, 1 run with runtime=cuda"


@pytest.mark.slow
def test_two_variants_compare(ran, monkeypatch, capsys):
    folder, _ = ran
    monkeypatch.chdir(folder)
    compare.main(["toy/ad", "toy/random"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "return at the end" in shown and "2 trainings, 4 tasks" in shown and "trains nothing" in shown
    with pytest.raises(SystemExit, match="no result 'toy/nonsense'.*toy/ad"):
        compare.main(["toy/ad", "toy/nonsense"])


def a_result(name, num_seeds, *, trained=True, tasks=(0, 1), oracle=(2.0, 2.0), rules=None):
    settings = {"tasks": rules} if rules else {}
    return compare.Result(name, "", {"final": np.zeros((num_seeds, len(tasks)))}, tasks, oracle, trained, settings)


@pytest.mark.parametrize(
    ("one", "other", "interval", "told"),
    [
        (a_result("a", 3), a_result("b", 2), (0.1, 0.3), "a is better"),
        (a_result("a", 3), a_result("b", 2), (-0.3, -0.1), "b is better"),
        (a_result("a", 3), a_result("b", 2), (-0.1, 0.3), "no difference shown"),
        (a_result("a", 1), a_result("b", 3), (0.1, 0.3), "a is higher, by one training"),
        (a_result("a", 3), a_result("b", 1), (-0.3, -0.1), "b is higher, by one training"),
        (a_result("a", 1, trained=False), a_result("b", 1, trained=False), (0.1, 0.3), "a is better"),
        (a_result("a", 3), a_result("b", 3, tasks=(0, 2)), (0.1, 0.3), "not judged: other tasks"),
        (a_result("a", 3), a_result("b", 3, oracle=(2.0, 1.0)), (0.1, 0.3), "not judged: other tasks"),
        (
            a_result("a", 3, rules={"width": 9}),
            a_result("b", 3, rules={"width": 8}),
            (0.1, 0.3),
            "not judged: other tasks",
        ),
        (
            a_result("a", 3, rules={"num_train": 9}),
            a_result("b", 3, rules={"num_train": 8}),
            (0.1, 0.3),
            "a is better",
        ),
    ],
)
def test_what_a_comparison_comes_to(one, other, interval, told):
    assert compare.verdict(one, other, *interval) == told


def test_numbers_of_one_training_and_of_several():
    study = load_study("prompting")
    finals = ([4.0, 12.0], [6.0, 12.0])
    runs = [
        Run("ad50", seed, "", "abc", {"held_out": SplitResult([9.0], [0, 1], final, final, [10.0, 20.0], [0.0, 0.0])})
        for seed, final in enumerate(finals)
    ]
    # A return varies by how far the task's goal is; as a part of the oracle's it does not.
    alone = split_metrics(StudyNumbers(study, runs[1:]), "ad50", "held_out")
    assert alone["oracle_fraction_ci95"] == pytest.approx([0.6, 0.6]) and alone[
        "oracle_fraction_iqm"
    ] == pytest.approx(0.6)
    both = split_metrics(StudyNumbers(study, runs), "ad50", "held_out")
    low, high = both["final_return_ci95"]
    assert low < both["final_return"] < high
    assert both["oracle_fraction_ci95"] == pytest.approx([low / 15, high / 15])
    low, high = both["final_return_iqm_stratified_ci95"]
    assert low <= both["final_return_iqm"] <= high and alone["final_return_iqm_stratified_ci95"] is None
    # The furthest prompt is one that there was, above the mean in one run and below it in the other.
    levels = (
        {"prompt_level": 0.5, "furthest_prompt_level": 0.58},
        {"prompt_level": 0.5, "furthest_prompt_level": 0.4},
    )
    prompted = [replace(run, extra=extra) for run, extra in zip(runs, levels, strict=True)]
    (row,) = study_rows(StudyNumbers(study, prompted))
    assert row["furthest prompt level"] == "0.40"


def test_a_result_beside_another_is_told_as_its_study_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bandit = load_study("adversarial_bandit")
    for seed, (variant, value) in enumerate({"random": 50.0, "source": 80.0, "ad": 77.0, "dpt": 65.0}.items()):
        split = SplitResult([value], [0, 1], [value, value], [value, value], [90.0, 90.0], [0.0, 0.0])
        unit = unit_of(bandit, bandit.variants[variant], 0)
        updates = seed if bandit.variants[variant].trains else None
        add_run(
            bandit.name, Run(variant, 0, unit.settings, "abc", {"held_out": split}, updates=updates), bandit.variants
        )
    second = SplitResult([75.0], [0, 1], [75.0, 75.0], [75.0, 75.0], [90.0, 90.0], [0.0, 0.0])
    unit = unit_of(bandit, bandit.variants["ad"], 1)
    add_run(bandit.name, Run("ad", 1, unit.settings, "abc", {"held_out": second}, updates=1), bandit.variants)
    good, plain = (compare.read_result(f"adversarial_bandit/{name}", "held_out") for name in ("ad", "source"))
    assert good.scores["normalised"].mean(1) == pytest.approx([0.9, 25 / 30]) and "first" not in good.scores
    assert (good.trained, plain.trained) == (True, False)
    with pytest.raises(ValueError, match="trained otherwise, in recipe"):
        compare.read_results("adversarial_bandit/ad,adversarial_bandit/dpt", "held_out")
    with pytest.raises(
        ValueError, match="'adversarial_bandit/ad' was not evaluated on the split 'seen', but on held_out"
    ):
        compare.read_result("adversarial_bandit/ad", "seen")


@pytest.mark.slow
def test_again_takes_back_what_shares_a_training(ran, tmp_path, monkeypatch):
    folder, study = ran
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    # One is trained, and its run is not recorded.
    withdraw_runs({unit_of(study, study.variants["ad"], 1).settings})
    assert paper.withdraw([(study, ["ad"])]) == ["toy/ad/0", "toy/prompted/0", "toy/looking/0"]
    assert [(run.variant, run.seed) for run in read_runs("toy")] == [
        ("ed", 0), ("dpt", 0), ("source", 0), ("random", 0)
    ]  # fmt: skip
    for seed in range(2):
        model = Path("models", unit_of(study, study.variants["ad"], seed).config["checkpoint"], "ad")
        assert (model / "model.json").is_file() and not (model / "commit.txt").exists()
    with pytest.raises(SystemExit, match="name the studies"):
        paper.main(["--again"])


def test_the_setup_tells_windows_from_what_is_computed_afresh():
    study = load_study("context_size")
    afresh, windows = (setup_sentences(unit_of(study, study.variants[name], 0).config)[0] for name in ("f50", "c50"))
    assert "every action is computed afresh from the last 50 steps (1 episode)." in afresh
    assert "each layer sees 13 steps, so what comes through all of them is at most 49 steps old." in windows


def test_committed_results_make_a_page(tmp_path):
    root = Path(__file__).parents[2]
    page = write_page(tmp_path / "paper.html", root / "data" / "results")
    text = html.unescape(page.read_text())
    assert "{{" not in text
    for name in study_names():
        study = load_study(name)
        assert (f'<h2 id="{name}">' in text) != study.on_request
        assert study.on_request or all(check.text in text for check in study.checks)
    assert all(claim in text for claim in load_claims("algorithm_distillation").values())
    assert all(f"{name} runtime=cuda" in text for name in study_names() if load_study(name).on_request)


def test_gathered_metrics_have_the_reports_form():
    root = Path(__file__).parents[2]
    for by_agent in gathered(results=root / "data" / "results").values():
        for by_split in by_agent.values():
            assert {"final_return", "final_return_ci95", "oracle_fraction"} <= set(by_split["held_out"])
            json.dumps(by_split, allow_nan=False)


@pytest.mark.slow
def test_a_killed_worker_takes_no_other_run_with_it(tmp_path, monkeypatch, capsys):
    """The kernel kills whatever it likes where memory is short; the pool ends, and the runs go on in another."""
    monkeypatch.chdir(tmp_path)
    variants = {name: STUDY["variants"][name] for name in ("ad", "random", "source")}
    study = write_study(tmp_path, STUDY | {"variants": variants})
    killed: list[int] = []

    def kill_one() -> None:
        while not killed:
            for child in psutil.Process().children():
                # The resource tracker is a child, too.
                if "spawn_main" in " ".join(child.cmdline()) and child.cpu_times().user > 1.0:
                    child.kill()
                    killed.append(child.pid)
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    assert paper.run_studies([(study, study.variants)], num_workers=1, num_threads=1, extra=[]) == 0
    killer.join(timeout=1)
    assert killed and "a worker was killed; 4 runs are left" in capsys.readouterr().out
    assert len(read_runs("toy")) == 4


def test_workers_that_die_again_and_again_end_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paper, "_start_worker", _die)
    study = write_study(tmp_path, STUDY)
    assert paper.run_studies([(study, ["random"])], num_workers=1, num_threads=1, extra=[]) == 1
    assert "workers were killed 2 times before any run was done" in capsys.readouterr().out


def _die(num_threads: int, parent: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_study_cannot_be_changed_from_the_command_line(capsys):
    with pytest.raises(SystemExit, match=r"models\.width=3 would change a published study"):
        paper.main(["dark_room", "models.width=3"])
    with pytest.raises(SystemExit, match="threads of each run are given by --threads"):
        paper.main(["dark_room", "runtime.num_threads=4"])
    with pytest.raises(SystemExit, match="no study 'dark_hall'"):
        paper.main(["dark_hall"])
    with pytest.raises(SystemExit, match="study 'dark_room' has no variant 'nonsense'; it has ad, ad_long, ad_greedy"):
        paper.main(["dark_room/nonsense"])


def test_a_broken_override_is_refused_before_any_run(tmp_path):
    study = write_study(tmp_path, STUDY | {"overrides": ["models.widht=3"]})
    with pytest.raises(ValueError, match="study 'toy', variant 'ad' cannot be composed.*widht"):
        units_of(study)


# Few tasks, episodes and updates; models and pictures stay as large as the paper's.
SHORT = [
    "tracking=none",
    "tasks.num_train=4",
    "tasks.num_validation=1",
    "sources.num_episodes=8",
    "histories.collection.selection.min_final_fraction=null",
    "histories.contexts.keep_every_episode=1",
    "histories.contexts.batch_size=2",
    "training.schedule.num_updates=1",
    "training.schedule.validate_every_updates=1",
    "training.validation.num_episodes=1",
    "training.validation.num_seeds=1",
    "evaluation.lifetimes.num_episodes=2",
    "evaluation.lifetimes.num_seeds=1",
    "evaluation.max_tasks=2",
]
# The paper's sources learn for hours; these within eight episodes.
QUICK_SOURCES = {
    "dark_room_paper_size": "explorer",
    "dark_room_hard_paper_size": "explorer_hard",
    "dark_key_to_door_paper_size": "explorer_key_to_door",
    "watermaze_paper_size": "pose_searcher",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in study_names() if load_study(name).on_request])
def test_the_papers_own_sizes_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = load_study(name)
    study = replace(
        whole,
        name="short",
        overrides=(f"sources={QUICK_SOURCES[name]}", *SHORT),
        num_seeds=1,
        gathered_as=None,
        checks=(),
    )
    assert paper.run_studies([(study, ["ad"])], num_workers=1, num_threads=1, extra=[]) == 0
    (run,) = read_runs("short")
    assert run.updates == 1 and len(run.splits["held_out"].curve) == 2


def test_what_needs_a_gpu_runs_only_when_it_is_named():
    large = {f"{name}_paper_size" for name in ("dark_room", "dark_room_hard", "dark_key_to_door", "watermaze")}
    assert not large & set(paper.default_studies())
    assert large | set(paper.default_studies()) == set(study_names())
    assert [study.name for study, _ in paper.asked_studies(["dark_room_paper_size"])] == ["dark_room_paper_size"]


@pytest.mark.parametrize("name", study_names())
def test_every_run_of_every_study_would_start(name):
    study = load_study(name)
    for unit in units_of(study):
        if unit.seed == 0:
            config = OmegaConf.create(unit.config)
            OmegaConf.set_struct(config, True)
            check(config)
            assert set(study.splits) <= set(config.evaluation.splits)
            if config.agent == "rl2":  # beyond its trial it was trained for nothing
                assert config.evaluation.lifetimes.num_episodes <= config.training.learner.episodes_per_trial


def test_a_setting_that_came_later_leaves_older_results_current():
    study = load_study("dark_room_hard")
    explorer, q_learning = (
        unit_of(replace(study, experiment=name, overrides=overrides), study.variants["ad"], seed=0)
        for name, overrides in (("dark_room_explorer", ()), ("dark_room", ()))
    )
    assert explorer.config["sources"]["tie_break"] == "random"
    assert q_learning.config["sources"]["replay"] is None
    for unit, override in ((explorer, "sources.tie_break=first"), (q_learning, "sources.replay=backward")):
        experiment = "dark_room_explorer" if unit is explorer else "dark_room"
        changed = unit_of(replace(study, experiment=experiment, overrides=(override,)), study.variants["ad"], seed=0)
        assert changed.settings != unit.settings
        assert changed.config["dataset"] != unit.config["dataset"]
        sources = {key: value for key, value in unit.config["sources"].items() if key not in ("tie_break", "replay")}
        named = digest(unit.config["tasks"], sources, unit.config["histories"]["collection"])
        assert unit.config["dataset"].endswith(named)
