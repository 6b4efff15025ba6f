"""The README's tables tell what the results hold, and stand between their lines alone."""

import json
from pathlib import Path

import pytest

from distillery.papers.results import Run, SplitResult
from distillery.papers.statistics import StudyNumbers
from distillery.papers.study import Study, Variant
from distillery.reports.tables import DASH, REPORTED_EPISODES
from distillery.stages import readme

ROOT = Path(__file__).parents[2]
AROUND = "".join(f"before {name}\n{readme.begin_line(name)}\nold\n{readme.end_line(name)}\n" for name in readme.TABLES)


def values(final: float, reached: int | None, episodes: tuple[str, ...] = REPORTED_EPISODES) -> dict:
    return {
        "oracle_fraction_ci95": [0.1, 0.3],
        "oracle_fraction": 0.2,
        "oracle_fraction_iqm": 0.2,
        "oracle_return": 16.0,
        "episodes_to_reference": reached,
        "return_at": dict.fromkeys(episodes, 1.27),
        "final_return": final,
        "final_return_ci95": [1.0, 2.0],
        "failed_lifetimes": 0.0,
        "nauc": 0.5,
    }


def study(level: float | None) -> Study:
    variants = {
        "ad": Variant("ad", "AD", published=0.8),
        "ed": Variant("ed", "ED", agent="ed"),
        "source": Variant("source", "source", agent="source"),
    }
    named = {"name": "toy", "paper": "p", "title": "Toy", "claim": "c", "source": "s", "experiment": "dark_room"}
    return Study(**named, variants=variants, num_seeds=3, level=level)


def run(seed: int, final: float, num_episodes: int) -> Run:
    lived = SplitResult(
        curve=[final] * num_episodes,
        task_ids=[0, 1],
        first=[0.0, 0.0],
        final=[final, final],
        oracle=[2.0, 2.0],
        failed=[float(final < 1.0)] * 2,
    )
    return Run("ad", seed, f"ad-{seed}", "abc", {"held_out": lived})


def test_a_row_of_the_pipeline_tells_its_numbers():
    agents = ["ad", "source", "random", "oracle", "dpt"]
    metrics = {"one": {agent: {"held_out": values(3.456, 7 if agent == "ad" else None)} for agent in agents}}
    params = {"experiments": {"one": {}}, "agents": ["ad"]}
    lines = readme.markdown_table(readme.pipeline_rows(metrics, params)).splitlines()
    assert len(lines) == 2 + 4, "what a study adds to an experiment is not the pipeline's"
    assert lines[2] == "| one | AD | 1.3 | 1.3 | 1.3 | 1.3 | 1.3 | 3.46 | 0.200 | 0.100–0.300 | 0.500 | 7 |"  # noqa: RUF001
    assert lines[3].endswith(f"| {DASH} |")
    short = {"one": {agent: {"held_out": values(1.0, None, ("1", "10"))} for agent in agents}}
    assert "episode 100" not in readme.pipeline_rows(short, params)[0]
    with pytest.raises(ValueError, match=r"lacks two, which params\.yaml names; run `dvc repro`"):
        readme.pipeline_rows(metrics, {"experiments": {"one": {}, "two": {}}, "agents": ["ad"]})
    assert readme.markdown_table(readme.pipeline_rows({}, {"experiments": {}, "agents": []})) == ""


def test_a_row_of_an_environment_tells_how_much_it_rests_on():
    rows = readme.environment_rows(StudyNumbers(study(0.7), [run(0, 0.9, 12), run(1, 0.7, 12)]))
    assert [row["environment"] for row in rows] == ["Toy", ""], "the source does not train"
    ad, ed = rows
    assert ad["published"] == "0.80" and ad["held-out (95 %)"].startswith("0.80 (-")
    assert ad["trainings"] == "2 of 3" and ad["failed"] == "100%"
    assert ad["published AD reached from"] == "episode 1"
    assert ed["held-out (95 %)"] == "not run" and ed["trainings"] == "0 of 3" and ed["published"] == DASH


@pytest.mark.parametrize(("level", "episodes", "told"), [(1.5, 12, "never"), (0.5, 1, DASH), (None, 12, DASH)])
def test_a_level_that_is_not_reached_is_told_from_one_that_cannot_be(level, episodes, told):
    (row, _) = readme.environment_rows(StudyNumbers(study(level), [run(0, 0.9, episodes)]))
    assert row["published AD reached from"] == told


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text(AROUND)
    Path("params.yaml").write_text("experiments: {}\nagents: []\n")
    readme.METRICS.parent.mkdir(parents=True)
    readme.METRICS.write_text(json.dumps({}))
    return tmp_path


def test_tables_are_made_of_results_alone_and_stand_between_their_lines(folder):
    """Without results there are claims, none of which was run, and environments, none of which either."""
    with pytest.raises(SystemExit, match="run `make readme`"):
        readme.main(["--check"])
    assert Path("README.md").read_text() == AROUND
    readme.main([])
    text = Path("README.md").read_text()
    assert "old" not in text and all(f"before {name}\n" in text for name in readme.TABLES)
    claims = text.partition(readme.begin_line("claims"))[2].partition(readme.end_line("claims"))[0]
    assert claims.count("not run") >= 10
    assert "| Watermaze, from pixels | AD of a searcher | 0.84 | not run | 0 of 3 |" in text
    assert "paper's sizes" not in text, "what is run on request is no row"
    readme.main(["--check"])


def test_studies_are_told_without_the_pipelines_numbers(folder):
    readme.METRICS.unlink()
    readme.update_readme({readme.CLAIMS: "new"})
    text = Path("README.md").read_text()
    assert text == AROUND.replace("\nold\n<!-- end: claims", "\n\nnew\n\n<!-- end: claims")
    with pytest.raises(SystemExit, match=r"metrics\.json does not exist; run `dvc repro` first"):
        readme.main([])


def test_what_is_missing_is_named(folder):
    Path("README.md").write_text(AROUND.replace(readme.end_line("claims"), ""))
    with pytest.raises(SystemExit, match="lacks the line '<!-- begin: claims"):
        readme.main([])
    readme.METRICS.write_text("{")
    with pytest.raises(SystemExit, match=r"metrics\.json is not valid JSON"):
        readme.main([])
    Path("README.md").unlink()
    with pytest.raises(SystemExit, match=r"README\.md is missing; run this in the repository"):
        readme.main([])


def test_the_readme_has_a_place_for_every_table():
    text = (ROOT / "README.md").read_text()
    for name in readme.TABLES:
        assert text.index(readme.begin_line(name)) < text.index(readme.end_line(name))
