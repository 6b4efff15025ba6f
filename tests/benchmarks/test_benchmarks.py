"""The benchmarks run, both sides of a comparison compute the same, and no time is asserted."""

import ast
import ctypes.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from torch import nn

from benchmarks.__main__ import FOLDER, RESULTS, main
from benchmarks.cases import NOT_INSTALLED, Case, Row, all_cases, chosen_cases
from benchmarks.end_to_end import QUICK_PRESET
from benchmarks.evaluation import Recomputing, living, model_of
from benchmarks.machine import Demand, Limits
from benchmarks.results import BEGIN, END, figures, read_results, require_rivals, store, update_readme, write_results
from benchmarks.rivals import plain_loops
from benchmarks.rivals.networks import PlainTraining
from benchmarks.timing import Clock, Figure, Side, Variant, installed, race
from benchmarks.training import RIVALS, TINY, our_model, random_context, rival_network
from benchmarks.windows import collected, contexts_of, packed
from distillery.core.records import Context
from distillery.histories.writer import steps_frame
from distillery.sources.a2c import A2C
from distillery.tasks.dark_room import DarkRoom
from distillery.training.supervised import SupervisedLearner

ROOT = Path(__file__).parents[2]
QUICK = ["--quick", "--threads", "1"]
MACHINE = {
    "device": "cpu",
    "device_name": "a CPU",
    "cores": 2,
    "threads": 2,
    "torch": "2",
    "quick": False,
    "matrix_product_gflops": {"float32": 185.0},
    "memory_copy_gb_per_s": 20.0,
    "commit": "abc",
    "date": "2026-01-31",
}
# What a GPU machine may lack: everything that the three packages of our side do not need themselves.
BARE = """
import importlib.metadata as metadata, re, sys
kept, todo = set(), ["torch", "numpy", "gymnasium"]
while todo:
    name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
    if name not in kept:
        kept.add(name)
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        todo += [re.match(r"[\\w.-]+", entry)[0] for entry in needed if "extra ==" not in entry]
for module, owners in metadata.packages_distributions().items():
    names = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}
    if not names & kept and module not in ("distillery", "benchmarks") and module not in sys.modules:
        sys.modules[module] = None
"""


def installed_rivals() -> list[str]:
    return [name for name in RIVALS if installed(RIVALS[name].packages)]


# The command line


def test_every_stage_is_listed(capsys: pytest.CaptureFixture[str]):
    main(["--quick", "--list"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {name.partition("/")[0] for name in listed} == {
        *("attention_length", "collection", "end_to_end", "evaluation", "lifetimes", "memory", "renderer"),
        *("stepping", "training", "windows"),
    }
    assert len(listed) == len(set(listed))


def test_every_source_has_a_case():
    folder = ROOT / "src" / "distillery" / "sources"
    sources = {
        path.stem
        for path in folder.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == "Source" for b in node.bases)
    }
    assert sources == {case.name.partition("/")[2] for case in all_cases() if case.stage == "collection"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nothing"], "no case or stage is called 'nothing'"), (["--output", "{broken}", "stepping"], "not valid JSON")],
)
def test_a_mistake_is_told(arguments: list[str], said: str, tmp_path: Path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(SystemExit, match=said):
        main([*QUICK, *(argument.format(broken=broken) for argument in arguments)])


def test_a_case_for_gpus_alone_is_not_run_on_a_cpu():
    assert "training/large" not in [case.name for case in chosen_cases([], "cpu")]
    with pytest.raises(ValueError, match="cannot run on device=cpu; choose cuda"):
        chosen_cases(["training/large"], "cpu")


def require_figure(figure: dict[str, Any], *settings: str) -> None:
    assert figure["wall"] > 0
    assert figure["cpu"] > 0
    assert 0 <= figure["spread"] < 1
    assert {"device", "threads", *settings} <= figure["settings"].keys()


def test_quick_cases_leave_whole_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "results.json"
    main([*QUICK, "--output", str(output), "training/width64"])
    main([*QUICK, "--output", str(output), "evaluation/context200"])
    printed = capsys.readouterr().out
    results = json.loads(output.read_text())
    assert results["cases"].keys() == {"training/width64", "evaluation/context200"}
    for name in results["cases"]:
        assert results["cases"][name]["cpu"]["machine"]["threads"] == 1
        assert name.partition("/")[0] in printed
    machine = results["machine"]
    assert {"cpu", "cores", "threads", "torch", "device"} <= machine.keys()
    assert all(value > 0 for value in (*machine["matrix_product_gflops"].values(), machine["memory_copy_gb_per_s"]))
    rows = results["cases"]["training/width64"]["cpu"]["rows"]
    assert [row["beside"] for row in rows] == list(RIVALS)
    assert len(rows[0]["profile"]) == 5
    for row in rows:
        require_figure(row["ours"], "precision", "batch_size")
        assert max(row["shares"].values()) > 0
        if row["rival"] is None:
            assert row["note"] == NOT_INSTALLED
        else:
            require_figure(row["rival"], "precision", "batch_size")
            assert row["ratio"]["wall"] == pytest.approx(row["ours"]["wall"] / row["rival"]["wall"])
            assert results["ratios"][row["key"]] == row["ratio"]["wall"]
            assert results["ratios_cpu"][row["key"]] == row["ratio"]["cpu"]
    (row,) = results["cases"]["evaluation/context200"]["cpu"]["rows"]
    require_figure(row["ours"], "precision", "lifetimes")
    require_figure(row["rival"], "precision", "lifetimes")
    assert results["ratios"]["evaluation_cached_vs_recompute_200"] == row["ratio"]["wall"]


def test_our_side_runs_with_torch_numpy_and_gymnasium_alone(tmp_path: Path):
    cases = ["collection/q_learning", "collection/noise_annealed", "evaluation/context200", "windows/in_memory"]
    output = tmp_path / "results.json"
    code = f"{BARE}\nfrom benchmarks.__main__ import main\nmain({[*QUICK, '--output', str(output), *cases]})"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    measured = json.loads(output.read_text())["cases"]
    assert list(measured) == [case.name for case in all_cases() if case.name in cases]
    for name in cases:
        rows = measured[name]["cpu"]["rows"]
        if name == "collection/noise_annealed":
            assert "this case needs hydra" in rows[0]["note"]
        else:
            assert all(row["ours"]["wall"] > 0 for row in rows)
    missing = [row["note"] for row in measured["windows/in_memory"]["cpu"]["rows"]]
    assert missing == [NOT_INSTALLED, NOT_INSTALLED]


# Measuring


def test_sides_take_turns_and_the_fastest_variant_runs():
    turns: list[str] = []

    def working(name: str, units: int) -> Variant:
        def work() -> int:
            turns.append(name)
            return units

        return Variant(lambda: work, {"units": units})

    def failing() -> Any:
        raise RuntimeError("out of memory")

    sides = [
        Side("ours", [Variant(failing), working("slow", 1), working("fast", 10**9)]),
        Side("theirs", [working("theirs", 1)]),
    ]
    ours, theirs = race(sides, Clock("cpu", rounds=3, seconds=0.0))
    assert turns[-6:] == ["fast", "theirs"] * 3
    assert ours.settings["units"] == 10**9
    assert 0 <= theirs.spread < 1
    with pytest.raises(RuntimeError, match="out of memory"):
        race([Side("ours", [Variant(failing)])], Clock("cpu", rounds=1, seconds=0.0))


def test_shares_of_limits():
    limits = Limits({"float32": 100.0, "bfloat16": 400.0}, copy=50.0)
    shares = Demand(operations=10.0, bytes=1.0).shares(5.0, "bfloat16", limits)
    assert shares == {"matrix product, bfloat16": 0.125, "memory copy": 0.1}


# Results


def a_case(name: str) -> Case:
    return Case(name, f"about {name}", lambda conditions: [])


def a_row() -> Row:
    ours = Figure("ours", 6.0, 8.0, settings={"device": "cpu", "threads": 2, "precision": "bfloat16"})
    theirs = Figure("theirs", 3.0, 2.0)
    return Row("a", "steps/s", ours=ours, rival=theirs, beside="theirs", key="k")


def test_a_case_takes_the_place_of_its_own_rows_alone(tmp_path: Path):
    path = tmp_path / "results.json"
    results = read_results(path)
    row = a_row()
    store(results, a_case("one/a"), [row], MACHINE)
    store(results, a_case("one/a"), [row], {**MACHINE, "device": "cuda"})
    store(results, a_case("two/b"), [replace(row, key="l")], MACHINE)
    write_results(path, results)
    results = read_results(path)
    assert results["ratios"] == {"k": 2.0, "k_cuda": 2.0, "l": 2.0}
    assert results["ratios_cpu"] == {"k": 4.0, "k_cuda": 4.0, "l": 4.0}
    store(results, a_case("one/a"), [replace(row, rival=None, note=NOT_INSTALLED)], MACHINE)
    assert results["ratios"] == {"k_cuda": 2.0, "l": 2.0}


def test_what_was_measured_beside_others_is_not_measured_alone(tmp_path: Path):
    path = tmp_path / "results.json"
    results = read_results(path)
    row = a_row()
    gone = replace(row, rival=replace(row.rival, packages=("torch", "no_such_package")))
    store(results, a_case("one/a"), [gone], MACHINE)
    store(results, a_case("two/b"), [replace(row, rival=replace(row.rival, packages=("torch",)))], MACHINE)
    write_results(path, results)
    results = read_results(path)
    require_rivals(results, [a_case("two/b"), a_case("three/c")], "cpu")
    require_rivals(results, [a_case("one/a")], "cuda")
    with pytest.raises(ValueError, match="one/a was measured beside theirs, which is not installed.*--output"):
        require_rivals(results, [a_case("one/a"), a_case("two/b")], "cpu")


def test_results_are_written_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "results.json"
    results = read_results(path)
    write_results(path, results)
    before = path.read_text()
    results["ratios"]["k"] = float("nan")
    with pytest.raises(ValueError, match="Out of range float values"):
        write_results(path, results)
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_readme_is_rendered_from_results(tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nstale figures\n{END}\nafter\n")
    results = read_results(tmp_path / "none.json")
    row = a_row()
    store(results, a_case("one/a"), [row], MACHINE)
    update_readme(readme, results, [a_case("one/a"), a_case("two/b")])
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale figures" not in text
    assert "| a | 6 steps/s (precision bfloat16) | theirs | 3 | 2 x | 4 x |  |" in text
    assert "one/a: measured on a CPU, 2 cores" in text and "2026-01-31, commit abc." in text
    assert text.count("| about two/b | not measured |") == 2
    assert text.count("| about one/a | not measured |") == 1
    store(results, a_case("one/a"), [row], {**MACHINE, "quick": True})
    with pytest.raises(ValueError, match="one/a were measured at tiny sizes"):
        update_readme(readme, results, [])
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the line"):
        update_readme(readme, read_results(tmp_path / "none.json"), [])


def test_committed_figures_are_those_of_the_committed_results():
    text = (FOLDER / "README.md").read_text()
    assert figures(read_results(RESULTS), all_cases()) in text, "run `python -m benchmarks --readme`"


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in all_cases() if "cpu" in case.devices], ids=lambda case: case.name)
def test_every_case_runs_beside_its_rivals(case: Case, tmp_path: Path):
    if case.stage == "renderer" and ctypes.util.find_library("EGL") is None:
        pytest.skip("MuJoCo draws through EGL, which this machine lacks")
    output = tmp_path / "results.json"
    main([*QUICK, "--output", str(output), case.name])
    rows = json.loads(output.read_text())["cases"][case.name]["cpu"]["rows"]
    assert all(row["note"] != NOT_INSTALLED for row in rows), "the rivals are installed for tests"
    assert all(row["ours"]["wall"] > 0 for row in rows)
    assert all(row["rival"] is None or row["rival"]["wall"] > 0 for row in rows)


# Both sides do the same


def test_both_actor_critics_have_one_network_of_the_same_size():
    from benchmarks.rivals.stable_baselines import ALGORITHMS, environments, shared_network

    theirs = ALGORITHMS["A2C"]("MlpPolicy", environments("own", 2), policy_kwargs=shared_network([128] * 3)).policy
    ours = A2C(num_episodes=1, num_actors=2).start(DarkRoom(), np.array([0]), seed=0)
    weights = sum(parameter.numel() for parameter in ours._networks.parameters)
    assert count(theirs) == weights == 18 * 128 + 128 + 2 * (128 * 128 + 128) + 128 * 6 + 6
    assert sum(isinstance(layer, nn.ReLU) for layer in theirs.modules()) == 3
    assert theirs.share_features_extractor


def test_the_older_code_is_given_the_quick_preset():
    composed = []
    for overrides in (["experiment=dark_room_quick"], ["experiment=dark_room_explorer", *QUICK_PRESET]):
        with initialize_config_module("distillery.conf", version_base="1.3"):
            composed.append(compose("config", overrides))
    assert composed[0] == composed[1]


@pytest.mark.parametrize("play", ["env", "tables"])
def test_plain_loops_of_q_learning_learn(play: str):
    if play == "env":
        returns = plain_loops.q_learning_over_env(plain_loops.dark_room(), 200)
    else:
        returns = plain_loops.q_learning_over_tables(DarkRoom(), 200)
    assert np.mean(returns[-50:]) > 2 * np.mean(returns[:20]) + 0.5


def test_plain_loops_of_bandits_beat_random_pulls():
    from distillery.tasks.adversarial_bandit import AdversarialBandit

    bandits = AdversarialBandit(num_train=50)
    for name in ("ucb", "thompson"):
        assert np.mean(plain_loops.bandits(bandits, name, 30)) > 65


@torch.inference_mode()
def test_acting_with_a_cache_equals_recomputing():
    model, room, random = model_of(10), DarkRoom(), torch.Generator().manual_seed(0)
    recomputing = Recomputing(model)
    caches, previous = (model.new_cache(3), recomputing.new_cache(3)), None
    for _ in range(model.context_length):
        observations = torch.randint(9, (3, 2), generator=random)
        cached, afresh = (
            own.act(observations, previous, c) for own, c in zip((model, recomputing), caches, strict=True)
        )
        torch.testing.assert_close(cached, afresh, atol=1e-5, rtol=1e-5)
        actions = torch.randint(room.spec.num_actions, (3,), generator=random)
        previous = (actions, torch.rand(3, generator=random))
    full = Recomputing(model, begin_full=True).new_cache(3)
    assert len(full.observations) == len(full.actions) == len(full.rewards) == model.context_length - 1


def test_both_sides_live_as_many_steps():
    for model in (model_of(6), Recomputing(model_of(6), begin_full=True)):
        work = living(model, 5, "cpu", bfloat16=False, steps_first=6, steps_each=2)
        assert work() == work() == 10


@pytest.mark.parametrize("name", installed_rivals())
def test_rival_networks_are_causal_and_of_our_size(name: str):
    shape = replace(TINY, width=64, num_layers=4, num_heads=4)
    network, context = rival_network(name, shape).eval(), random_context(shape, "cpu")
    changed = Context(*(part.clone() for part in (context.observations, context.actions, context.rewards)))
    changed.observations[:, -1] = 8 - changed.observations[:, -1]
    changed.actions[:, -2] = 4 - changed.actions[:, -2]
    with torch.inference_mode():
        before, after = network(context), network(changed)
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])
    ours, theirs = (count(model) for model in (our_model(shape), network))
    assert ours == pytest.approx(theirs, rel=0.02)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", ["ours", *installed_rivals()])
def test_every_side_of_training_learns(name: str):
    context = random_context(TINY, "cpu")
    losses = []
    if name == "ours":
        learner = SupervisedLearner(our_model(TINY), num_updates=30)
        losses = [float(learner.update(context, update)["loss"]) for update in range(30)]
    else:
        training = PlainTraining(rival_network(name, TINY), device="cpu", bfloat16=False, compile=False)
        losses = [float(training.update(context)) for _ in range(30)]
    assert losses[0] == pytest.approx(np.log(5), abs=0.5)
    assert losses[-1] < losses[0] - 0.2


def test_packed_histories_are_those_of_the_shard(tmp_path: Path):
    episodes, task_ids = collected(6, 4)
    histories = packed(tmp_path, episodes, task_ids, copies=2)
    frame = steps_frame(episodes, task_ids, DarkRoom().spec, first_history=0)
    for copy in np.split(histories.steps, 2):
        np.testing.assert_array_equal(copy["action"], frame["action"].to_numpy())
        np.testing.assert_array_equal(copy["reward"], frame["reward"].to_numpy())
        for d in range(2):
            np.testing.assert_array_equal(copy["observation"][:, d], frame[f"observation_{d}"].to_numpy())
    context = contexts_of(histories, batch_size=3, sequence_length=70).batch(0)
    assert context.actions.shape == (3, 70)
