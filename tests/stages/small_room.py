"""Overrides of a Dark Room so small that its stages take seconds."""

SMALL_ROOM = [
    "tasks.width=5",
    "tasks.height=5",
    "tasks.episode_steps=8",
    "tasks.num_validation=3",
    "tasks.num_held_out=4",
    "sources.num_episodes=40",
]
