import json
from pathlib import Path

import pytest

from distillery.papers.study import load_study
from distillery.stages import readme
from distillery.stages.paper_page import numbers_of

ROOT = Path(__file__).parents[2]
PARTS = ("pipeline", "claims", "environments")


def values(final: float, reached: int | None) -> dict:
    return {
        "oracle_fraction_ci95": [0.1, 0.3],
        "oracle_fraction": 0.2,
        "oracle_return": 16.0,
        "episodes_to_reference": reached,
        "return_at": dict.fromkeys(readme.EPISODES, 1.25),
        "final_return": final,
        "nauc": 0.5,
    }


def test_a_row_of_the_pipeline_tells_its_numbers():
    agents = ["ad", "source", "random", "oracle", "dpt"]
    metrics = {"one": {agent: {"held_out": values(3.456, 7 if agent == "ad" else None)} for agent in agents}}
    rows = readme.pipeline_rows(metrics, {"experiments": {"one": {}}, "agents": ["ad"]})
    assert rows[0]["agent"] == "**AD**"
    assert len(rows) == 4, "what a study adds to an experiment is not the pipeline's"
    line = readme.table(rows).splitlines()[2]
    assert line == "| `one` | **AD** | 1.2 | 1.2 | 1.2 | 1.2 | 1.2 | 3.46 | 0.200 (0.100 to 0.300) | 0.500 | 7 |"
    assert f"| {readme.DASH} |" in readme.table(rows).splitlines()[3]


def test_a_row_of_an_environment_tells_what_the_study_has():
    numbers = numbers_of(load_study("adversarial_bandit"), ROOT / "data" / "results")
    row = readme.environment_row(numbers)
    assert row["AD, published"] == "0.83" and row["ED, published"] == "-0.48"
    assert float(row["AD of a plain source"]) == pytest.approx(numbers.level("ad").value, abs=0.005)
    assert row["AD of A2C, episode 1000"] == readme.DASH
    hard = readme.environment_row(numbers_of(load_study("dark_room_hard"), ROOT / "data" / "results"))
    assert ", from " in hard["AD of a plain source"]


def test_parts_are_written_between_their_lines_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    around = "".join(f"before {part}\n{readme.begin(part)}\nold\n{readme.end(part)}\n" for part in PARTS)
    written = {part: f"new {part}" for part in PARTS}
    Path("README.md").write_text(around)
    Path("params.yaml").write_text("experiments: {}\nagents: []\n")
    readme.METRICS.parent.mkdir(parents=True)
    readme.METRICS.write_text(json.dumps({}))
    monkeypatch.setattr(readme, "parts", lambda metrics, params: written)
    with pytest.raises(SystemExit, match="run make readme"):
        readme.main(["--check"])
    assert Path("README.md").read_text() == around
    readme.main([])
    text = Path("README.md").read_text()
    assert "old" not in text and all(f"before {part}" in text and f"new {part}" in text for part in PARTS)
    readme.main(["--check"])
    Path("README.md").write_text(around.replace(readme.end("claims"), ""))
    with pytest.raises(SystemExit, match="lacks the line '<!-- begin: claims"):
        readme.main([])
    Path("README.md").unlink()
    with pytest.raises(SystemExit, match=r"README\.md is missing"):
        readme.main([])


def test_the_readme_has_a_place_for_every_part():
    text = (ROOT / "README.md").read_text()
    for part in PARTS:
        assert text.index(readme.begin(part)) < text.index(readme.end(part))
