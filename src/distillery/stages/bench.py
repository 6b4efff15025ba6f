"""Speeds, as ratios measured side by side in one run.

python -m distillery.stages.bench
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

import distillery.tasks.gymnasium_env  # noqa: F401  registers the environments
from distillery.core.records import Context
from distillery.evaluation.in_context import InContextEvaluation
from distillery.histories.contexts import Contexts
from distillery.histories.reader import open_packed
from distillery.histories.writer import HistoryWriter
from distillery.models.causal_transformer import CausalTransformer
from distillery.sources.explorer import Explorer
from distillery.sources.q_learning import QLearning
from distillery.tasks.dark_room import DarkRoom
from distillery.tasks.watermaze import Watermaze, WatermazeBatch

Row = tuple[str, str, float, str, float]


def rate(work: Callable[[], int], repeats: int = 3) -> float:
    """Best units per second of several repeats; `work` returns how many units it did."""
    best = 0.0
    for _ in range(repeats):
        begin = time.perf_counter()
        units = work()
        best = max(best, units / (time.perf_counter() - begin))
    return best


def python_q_learning(num_episodes: int = 60) -> int:
    """The same algorithm as a plain loop over one Gymnasium environment; returns its steps."""
    env = gymnasium.make("distillery/DarkRoom-v0", task_id=12).unwrapped
    table, random = np.zeros((81, 5)), np.random.default_rng(0)
    for _ in range(num_episodes):
        observation, _ = env.reset()
        truncated = False
        while not truncated:
            state = observation[0] + 9 * observation[1]
            action = random.integers(5) if random.random() < 0.5 else int(table[state].argmax())
            observation, reward, _, truncated, _ = env.step(action)
            ahead = table[observation[0] + 9 * observation[1]].max()
            table[state, action] += 0.99 * (reward + 0.97 * ahead - table[state, action])
    return num_episodes * 20


def array_q_learning(num_episodes: int = 200) -> int:
    """The same without an environment class: the fastest plain loop, on tables; returns its steps."""
    room = DarkRoom()
    moves, table, random = room.next_state.tolist(), [[0.0] * 5 for _ in range(81)], np.random.default_rng(0)
    explore = (random.random((num_episodes, 20)) < 0.5).tolist()
    actions = random.integers(5, size=(num_episodes, 20)).tolist()
    for episode in range(num_episodes):
        state = 40
        for step in range(20):
            row = table[state]
            action = actions[episode][step] if explore[episode][step] else row.index(max(row))
            after = moves[state][action]
            row[action] += 0.99 * ((after == 12) + 0.97 * max(table[after]) - row[action])
            state = after
    return num_episodes * 20


def bench_sources(room: DarkRoom) -> list[Row]:
    """Batched sources against plain loops, in learner-steps per second."""
    ids = np.repeat(room.task_ids("train"), 80)

    def run(source: QLearning | Explorer) -> Callable[[], int]:
        return lambda: sum(len(ids) * 20 for _ in source.run(room, ids, seed=0))

    q_learning = rate(run(QLearning(num_episodes=50, epsilon_start=0.5, initial_value=20.0)))
    explorer = rate(run(Explorer(num_episodes=10)), repeats=1)
    loop, tables = rate(python_q_learning), rate(array_q_learning)
    return [
        ("Q-learning, 4560 learners at once", "learner-steps/s", q_learning, "loop over a Gymnasium env", loop),
        ("Q-learning, 4560 learners at once", "learner-steps/s", q_learning, "loop over plain tables", tables),
        ("explorer, 4560 learners at once", "learner-steps/s", explorer, "loop over a Gymnasium env", loop),
    ]


def bench_histories(room: DarkRoom) -> list[Row]:
    """Drawing contexts from the packed memory-map against slicing the Parquet shard, in steps per second."""
    ids = np.repeat(room.task_ids("train"), 10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "data")
        folder.mkdir()
        writer = HistoryWriter(folder, kind="learning", spec=room.spec, splits=room.splits(), num_episodes=50)
        writer.append(list(QLearning(num_episodes=50, initial_value=20.0).run(room, ids, seed=0)), ids)
        writer.seal(tasks={}, source={}, seed=0, selection={})
        _, packed = open_packed(folder, Path(name, "packed"))
        contexts = Contexts(packed, sequence_length=400, batch_size=32, start="random")

        def memory_map() -> int:
            return sum(contexts.batch(update).actions.numel() for update in range(20))

        def parquet() -> int:
            shard = pl.scan_parquet(folder / "shard-00000.parquet")
            first = np.random.default_rng(0).integers(len(ids), size=32) * 1000
            return sum(shard.slice(int(row), 400).collect().height for row in first)

        return [("contexts from the memory-map", "steps/s", rate(memory_map), "slices of Parquet", rate(parquet))]


def bench_model(room: DarkRoom) -> list[Row]:
    """Cached acting against recomputing the window, and training, in steps per second."""
    model = CausalTransformer(room.spec, context_length=200).eval()
    ids = room.task_ids("held_out")

    def cached() -> int:
        InContextEvaluation(num_episodes=20, num_seeds=8).run(model, room, ids, seed=0)
        return len(ids) * 8 * 20 * 20

    def window(length: int) -> Context:
        shape = (len(ids) * 8, length)
        return Context(
            torch.zeros(*shape, 2, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        )

    @torch.inference_mode()
    def recomputed() -> int:
        for length in (50, 100, 150, 200, 200, 200, 200, 200):  # a lifetime of 400 steps, every fiftieth of them
            model(window(length))
        return len(ids) * 8 * 8

    return [
        (
            "acting, 128 lifetimes, rolling cache",
            "steps/s",
            rate(cached, 2),
            "recomputing the window",
            rate(recomputed, 2),
        )
    ]


# A pool like ours: a disc of water, a ring of coloured walls, a platform, and a camera that slides and turns.
_POOL = """<mujoco>
<visual><global offwidth="96" offheight="72"/><quality shadowsize="0" offsamples="0"/></visual>
<worldbody><light pos="0 0 2" castshadow="false"/><geom type="cylinder" size="1 .01" rgba="0 .3 .8 1"/>{walls}
<geom type="cylinder" size=".1 .05" pos=".4 .2 .05"/>
<body pos="0 0 .12"><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 1 0"/><joint axis="0 0 1"/>
<geom size=".01" mass="1"/><camera name="eye" fovy="74" xyaxes="0 -1 0 0 0 1"/></body></worldbody></mujoco>"""


def mujoco_frames(height: int, width: int, num_frames: int = 1000) -> float:
    """Frames per second of MuJoCo drawing such a pool one by one, without shadows; NaN where that cannot be."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
    except (ImportError, AttributeError):  # the latter where there is no OpenGL
        return math.nan
    wall = '<geom type="box" size=".02 .14 .25" pos="{:.3f} {:.3f} .25" euler="0 0 {:.0f}" rgba="{:d} {:d} {:d} 1"/>'
    walls = "".join(
        wall.format(np.cos(turn), np.sin(turn), np.degrees(turn), i % 3 == 0, i % 3 == 1, i % 3 == 2)
        for i, turn in enumerate(np.arange(24) * np.pi / 12)
    )
    model = mujoco.MjModel.from_xml_string(_POOL.format(walls=walls))
    data, random = mujoco.MjData(model), np.random.default_rng(0)
    with mujoco.Renderer(model, height, width) as renderer:

        def draw() -> int:
            for _ in range(num_frames):
                data.qpos[:] = random.uniform(-0.5, 0.5, 3)
                mujoco.mj_kinematics(model, data)
                mujoco.mj_camlight(model, data)
                renderer.update_scene(data, camera="eye")
                if not renderer.render().any():
                    raise RuntimeError("MuJoCo drew a black picture")
            return num_frames

        return rate(draw, 2)


def bench_renderer(room: DarkRoom) -> list[Row]:
    """A batch of 1024 views of the pool against one at a time, in frames per second."""
    rows = []
    for height, width in ((18, 24), (72, 96)):
        pool = Watermaze(height=height, width=width).batch(np.arange(1024), seed=0)
        pool.reset()
        actions = torch.randint(8, (20, 1024), generator=torch.Generator().manual_seed(0))
        for step in actions:
            pool.advance(step)

        def draw(pool: WatermazeBatch = pool) -> int:
            pool.frames()
            return 1024

        draw()
        other = mujoco_frames(height, width)
        beside = "MuJoCo (not installed, extra bench, or no OpenGL)" if math.isnan(other) else "MuJoCo, one by one"
        rows.append((f"views of 1024 pools, {height}x{width}", "frames/s", rate(draw, 10), beside, other))
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=None, help="torch threads; default: as torch chooses")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    room = DarkRoom()
    table = Table(title=f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for column in ("what", "speed", "beside", "speed", "ratio"):
        table.add_column(column, justify="left" if column in ("what", "beside") else "right")
    for bench in (bench_sources, bench_histories, bench_model, bench_renderer):
        for what, unit, speed, beside, other in bench(room):
            known = not math.isnan(other)
            table.add_row(
                what,
                f"{speed:,.0f} {unit}",
                beside,
                f"{other:,.0f}" if known else "",
                f"{speed / other:,.1f} x" if known else "",
            )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
