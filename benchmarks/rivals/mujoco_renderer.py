"""MuJoCo drawing a pool like Watermaze's, one view after another, without shadows."""

import os
from collections.abc import Callable

import numpy as np

from benchmarks.timing import Work

os.environ.setdefault("MUJOCO_GL", "egl")
import mujoco

# A disc of water, a ring of coloured walls, a platform, and a camera that slides and turns.
_POOL = """<mujoco>
<visual><global offwidth="96" offheight="72"/><quality shadowsize="0" offsamples="0"/></visual>
<worldbody><light pos="0 0 2" castshadow="false"/><geom type="cylinder" size="1 .01" rgba="0 .3 .8 1"/>{walls}
<geom type="cylinder" size=".1 .05" pos=".4 .2 .05"/>
<body pos="0 0 .12"><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 1 0"/><joint axis="0 0 1"/>
<geom size=".01" mass="1"/><camera name="eye" fovy="74" xyaxes="0 -1 0 0 0 1"/></body></worldbody></mujoco>"""
_WALL = '<geom type="box" size=".02 .14 .25" pos="{:.3f} {:.3f} .25" euler="0 0 {:.0f}" rgba="{:d} {:d} {:d} 1"/>'


def _pool() -> str:
    walls = "".join(
        _WALL.format(np.cos(turn), np.sin(turn), np.degrees(turn), i % 3 == 0, i % 3 == 1, i % 3 == 2)
        for i, turn in enumerate(np.arange(24) * np.pi / 12)
    )
    return _POOL.format(walls=walls)


def drawing(height: int, width: int, *, num_frames: int) -> Callable[[], Work]:
    """Draws so many frames a call, each from another place."""

    def prepare() -> Work:
        model = mujoco.MjModel.from_xml_string(_pool())
        data, random = mujoco.MjData(model), np.random.default_rng(0)
        renderer = mujoco.Renderer(model, height, width)

        def work() -> int:
            for _ in range(num_frames):
                data.qpos[:] = random.uniform(-0.5, 0.5, 3)
                mujoco.mj_kinematics(model, data)
                mujoco.mj_camlight(model, data)
                renderer.update_scene(data, camera="eye")
                if not renderer.render().any():
                    raise RuntimeError("MuJoCo drew a black picture; set MUJOCO_GL to egl, osmesa or glfw")
            return num_frames

        return work

    return prepare
