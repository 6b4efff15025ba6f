"""Watch a trained model learn in context, in the terminal: no training, no data.

python -m distillery.stages.demo
python -m distillery.stages.demo --goal 7 1 --episodes 20 --checkpoint models/dark_room/ad
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

import distillery
from distillery.core.protocols import SequenceModel, TaskDistribution
from distillery.core.seeding import numpy_generator, torch_generator
from distillery.stages.entry import build
from distillery.stages.evaluate import load_model
from distillery.training.checkpoints import read_checkpoint_info

DEMO_CHECKPOINT = Path(distillery.__file__).parent / "demo_checkpoint"


@dataclass(frozen=True)
class Moment:
    """One step of the lifetime being watched.

    Attributes:
        episode: number of the episode, from 0.
        step: steps taken in it.
        cell: (x, y) after the step.
        path: cells visited in this episode so far, in order.
        returns: return of every episode, the current one included.
    """

    episode: int
    step: int
    cell: tuple[int, int]
    path: list[tuple[int, int]]
    returns: list[float]


@torch.inference_mode()
def watch(
    model: SequenceModel, tasks: TaskDistribution, task_id: int, *, num_episodes: int, seed: int, greedy: bool = False
) -> Iterator[Moment]:
    """One lifetime on one task, step by step, weights frozen."""
    model.eval()
    batch = tasks.batch(np.array([task_id]), seed=seed)
    generator = torch_generator(seed, "demo")
    cache, previous, returns = model.new_cache(1), None, []
    for episode in range(num_episodes):
        observation, path, ended, step = batch.reset(), [], False, 0
        returns.append(0.0)
        path.append(tuple(observation[0].tolist()))
        yield Moment(episode, step, path[-1], path, returns)
        while not ended:
            probabilities = model.act(observation, previous, cache).softmax(-1)
            action = (
                probabilities.argmax(-1) if greedy else torch.multinomial(probabilities, 1, generator=generator)[0]
            )
            transition = batch.step(action)
            previous, observation = (action, transition.rewards), transition.observations
            returns[-1] += float(transition.rewards)
            step += 1
            path.append(tuple(observation[0].tolist()))
            ended = bool(transition.terminated | transition.truncated)
            yield Moment(episode, step, path[-1], path, returns)


def draw_room(moment: Moment, size: tuple[int, int], goal: tuple[int, int]) -> Text:
    """The room: the agent, the goal it cannot see, and where this episode has been."""
    width, height = size
    text = Text()
    for y in range(height):
        for x in range(width):
            if (x, y) == moment.cell == goal:
                text.append(" ◉", "bold green")
            elif (x, y) == moment.cell:
                text.append(" ●", "bold cyan")
            elif (x, y) == goal:
                text.append(" ★", "yellow")
            else:
                text.append(
                    " ▪" if (x, y) in moment.path else " ·", "cyan" if (x, y) in moment.path else "bright_black"
                )
        text.append(" \n" if y < height - 1 else " ")
    return text


def draw_returns(moment: Moment, oracle: float) -> Table:
    """One bar per episode, the oracle's return being a full one."""
    table = Table.grid(padding=(0, 1))
    for episode, value in list(enumerate(moment.returns, start=1))[-12:]:
        bar = ProgressBar(total=oracle, completed=min(value, oracle), width=30)
        table.add_row(f"episode {episode:2d}", bar, f"{value:4.0f}")
    return table


def draw(moment: Moment, size: tuple[int, int], goal: tuple[int, int], oracle: float) -> Group:
    """The whole screen."""
    room = Panel.fit(draw_room(moment, size, goal), title=f"episode {moment.episode + 1}, step {moment.step}")
    return Group(room, draw_returns(moment, oracle), Text(f"oracle {oracle:.0f} a full bar", "bright_black"))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=DEMO_CHECKPOINT, help="folder of a trained model")
    parser.add_argument("--goal", type=int, nargs=2, metavar=("X", "Y"), help="cell of the goal; default: held out")
    parser.add_argument("--episodes", type=int, default=10, help="episodes of the lifetime")
    parser.add_argument("--speed", type=float, default=40.0, help="steps per second; 0 draws only whole episodes")
    parser.add_argument("--seed", type=int, default=0, help="of the goal and of the sampled actions")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest action instead of sampling")
    return parser.parse_args(arguments)


def room_size(tasks: TaskDistribution) -> tuple[int, int]:
    """Width and height of the room that is drawn.

    Raises:
        ValueError: the tasks are no rooms with a goal in each cell.
    """
    sizes = tasks.spec.observation_sizes if tasks.spec.is_discrete else ()
    if len(sizes) != 2 or sizes[0] * sizes[1] != tasks.num_tasks:
        raise ValueError(
            f"the demo draws rooms in which each cell is the goal of one task, and the checkpoint is of "
            f"{type(tasks).__name__}; choose one of dark_room"
        )
    return sizes[0], sizes[1]


def choose_task(options: argparse.Namespace, tasks: TaskDistribution) -> int:
    """The task to watch: the goal asked for, or a held-out one drawn by the seed.

    Raises:
        ValueError: the goal lies outside the room.
    """
    width, height = room_size(tasks)
    if options.goal is None:
        return int(numpy_generator(options.seed, "demo goal").choice(tasks.task_ids("held_out")))
    x, y = options.goal
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"--goal {x} {y} lies outside the {width}x{height} room; both count from 0")
    return x + width * y


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = parse(arguments)
    torch.set_num_threads(1)
    console = Console()
    try:
        if options.episodes < 1 or options.speed < 0:
            raise ValueError(
                f"--episodes must be at least 1 and --speed at least 0, got {options.episodes}, {options.speed}"
            )
        info = read_checkpoint_info(options.checkpoint)
        tasks = build(info.training["tasks"])
        model = load_model(options.checkpoint, tasks)
        task_id = choose_task(options, tasks)
    except ValueError as error:
        sys.exit(f"error: {error}")
    size = room_size(tasks)
    goal = (task_id % size[0], task_id // size[0])
    oracle = float(tasks.oracle_returns()[task_id])
    split = next(split for split, ids in tasks.splits().items() if task_id in ids)
    console.print(
        f"A transformer that distilled '{info.training['dataset']}' acts with frozen weights. The goal ★ at {goal} is "
        f"invisible to it ({split.replace('_', '-')} task); whatever it learns, it learns in context."
    )
    moments = watch(model, tasks, task_id, num_episodes=options.episodes, seed=options.seed, greedy=options.greedy)
    if console.is_terminal and options.speed > 0:
        with Live(console=console, auto_refresh=False) as live:
            for moment in moments:
                live.update(draw(moment, size, goal, oracle), refresh=True)
                time.sleep(1.0 / options.speed)
    else:
        for moment in moments:
            if moment.step == tasks.spec.episode_steps:
                console.print(draw_room(moment, size, goal))
                console.print(f"episode {moment.episode + 1}: return {moment.returns[-1]:.0f} of {oracle:.0f}\n")
    console.print(f"returns: {' '.join(f'{value:.0f}' for value in moment.returns)} (oracle {oracle:.0f})")


if __name__ == "__main__":
    main()
