"""What is to be learned: task distributions, batched, each with its split by task.

Each family is registered with Gymnasium by name, so that nothing of it is imported before it is made.
"""

import gymnasium

for _id, _tasks in (
    ("distillery/AdversarialBandit-v0", "distillery.tasks.adversarial_bandit:AdversarialBandit"),
    ("distillery/DarkKeyToDoor-v0", "distillery.tasks.dark_key_to_door:DarkKeyToDoor"),
    ("distillery/DarkRoom-v0", "distillery.tasks.dark_room:DarkRoom"),
    ("distillery/Watermaze-v0", "distillery.tasks.watermaze:Watermaze"),
):
    gymnasium.register(
        id=_id,
        entry_point="distillery.tasks.gymnasium_env:TaskEnv",
        vector_entry_point="distillery.tasks.gymnasium_env:TaskVectorEnv",
        kwargs={"tasks": _tasks},
    )
