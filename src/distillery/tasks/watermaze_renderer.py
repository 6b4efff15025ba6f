"""What an agent sees in a round pool: first-person pictures of many poses at once, by closed forms.

Nothing here but vertical walls, level water and a round platform, so that in each column of pixels everything is
bounded by rows that follow from distances along the ground. A column's rays leave the eye along d = f + x r, with f
ahead, r to the right and x the column's slope. They meet a circle of radius R about the eye's offset p at depth

    t = (-p.d + sqrt((p.d)^2 - |d|^2 (|p|^2 - R^2))) / |d|^2

and a thing h above or below the eye at depth t ends at row  focal * h / t  from the horizon. So all arithmetic is done
once a column; a pixel only asks whether its row lies before a bound. It asks in whole bytes, since ``(row - bound)
>> 7`` is 0 or all ones in int8, and a colour is chosen by those ones: several times faster on a CPU than selecting by
truth values, and the same on any device.

Letters: E parallel environments, H rows of pixels, W columns, U rows above the horizon, L rows below it.
"""

import math

import torch
from torch import Tensor

EYE_HEIGHT, PLATFORM_HEIGHT, WALL_HEIGHT = 0.12, 0.08, 0.5  # above the water, in the pool's unit of length
# The wall's sectors, in order of growing angle: how many of NUM_BINS equal angles each is wide, and its colour. All
# colours differ and so do neighbours' widths, so that any view of an edge tells the heading.
NUM_BINS = 64
SECTORS = (
    (3, (220, 40, 40)),
    (7, (205, 175, 140)),
    (4, (40, 70, 220)),
    (6, (240, 215, 50)),
    (8, (130, 50, 170)),
    (3, (50, 160, 60)),
    (5, (240, 130, 40)),
    (9, (70, 215, 215)),
    (4, (120, 75, 40)),
    (6, (245, 140, 190)),
    (4, (30, 30, 30)),
    (5, (165, 225, 60)),
)
# Walls darken with distance, in equal steps from here to the pool's diameter.
NUM_SHADES, DARKEST = 32, 0.45
SKY, WATER = (178, 186, 200), (25, 90, 120)  # and the platform is white
MAX_HEIGHT = 254  # distances in rows from the horizon fit into int8
_CHUNK_BYTES = 1 << 21  # of pictures drawn in one go on a CPU, so that they stay in its cache
_NEAREST = 1e-6  # depth of what is underfoot


def _bytes(colours: Tensor) -> Tensor:
    """Rounded colours as the bytes that they are."""
    return colours.round().to(torch.uint8).view(torch.int8)


class PoolRenderer:
    """Pictures of one kind of pool.

    Args:
        height: H.
        width: W.
        field_of_view: horizontal, in degrees, below 180.
        pool_radius: of the wall.
        platform_radius: of the platform.
        device: of poses and pictures.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        field_of_view: float,
        pool_radius: float,
        platform_radius: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.height, self.width = height, width
        self._pool_radius, self._platform_radius = pool_radius, platform_radius
        self._focal = width / 2 / math.tan(math.radians(field_of_view) / 2)  # pixels per unit of slope
        self._slopes = (torch.arange(width, device=device) + 0.5 - width / 2) / self._focal  # (W,)
        self._squares = 1.0 + self._slopes.square()  # (W,) |d|^2
        self._num_above, self._num_below = height // 2, height - height // 2
        # From the horizon to the middle of the first row below it, in rows.
        self._middle = 0.5 + self._num_above - height / 2
        rows = torch.arange(self._num_below, dtype=torch.int8, device=device)
        self._rows = rows[:, None].expand(-1, 3 * width).contiguous()  # (L, 3 W)
        self._walls = self._wall_colours(device)
        self._sky, self._water = (
            _bytes(torch.tensor(colour * width, device=device).float()) for colour in (SKY, WATER)
        )

    def _wall_colours(self, device: torch.device | str) -> Tensor:
        """(NUM_BINS * NUM_SHADES, 3) bytes: a direction's colour in every shade, nearest first."""
        colours = torch.tensor([colour for width, colour in SECTORS for _ in range(width)], device=device)
        shades = torch.linspace(1.0, DARKEST, NUM_SHADES, device=device)
        return _bytes(colours[:, None] * shades[:, None]).flatten(0, 1)

    def render(self, position: Tensor, heading: Tensor, platform: Tensor, risen: Tensor) -> Tensor:
        """(E, H, W, 3) uint8 pictures.

        Args:
            position: (E, 2) of the eyes, inside the pool, whose centre is (0, 0).
            heading: (E,) radians, growing to the left; 0 looks along the first axis.
            platform: (E, 2), its centres.
            risen: (E,) bool, where the platform stands out of the water.
        """
        walls = self._wall(position, heading)
        platforms = self._platform(platform - position, heading, risen) if bool(risen.any()) else None
        num_envs, frame_bytes = len(position), 3 * self.height * self.width
        pictures = torch.empty((num_envs, self.height, 3 * self.width), dtype=torch.int8, device=position.device)
        chunk = max(_CHUNK_BYTES // frame_bytes, 1) if position.device.type == "cpu" else num_envs
        for start in range(0, num_envs, chunk):
            part = slice(start, start + chunk)
            self._paint_pool(pictures[part], *(bound[part] for bound in walls))
            if platforms is not None:
                self._paint_platform(pictures[part, self._num_above :], *(bound[part] for bound in platforms))
        return pictures.view(torch.uint8).view(num_envs, self.height, self.width, 3)

    # A column at a time

    def _sides(self, offset: Tensor, heading: Tensor) -> tuple[Tensor, Tensor]:
        """How far (E, 2) offsets lie ahead and to the right, each (E, 1)."""
        cosine, sine, x, y = heading.cos(), heading.sin(), offset[:, 0], offset[:, 1]
        return (x * cosine + y * sine)[:, None], (x * sine - y * cosine)[:, None]

    def _bound(self, rows: Tensor, num_rows: int) -> Tensor:
        """(E, 1, 3 W) int8 from (E, W) whole rows: cut to the picture, and the same for all three colours."""
        cut = rows.clamp_(0, num_rows).to(torch.int8)
        return cut[..., None].expand(-1, -1, 3).reshape(len(rows), 1, -1)

    def _rows_to(self, drop: float, depth: Tensor) -> Tensor:
        """(E, W) how many rows below the first under the horizon a thing lies, `drop` below the eye at `depth`."""
        return self._focal * drop / depth - self._middle

    def _wall(self, position: Tensor, heading: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Its colours, the rows of sky, and the rows of wall below the horizon, each (E, 1, 3 W) int8."""
        ahead, right = self._sides(position, heading)
        along = ahead + right * self._slopes  # (E, W)
        outside = position.square().sum(1, keepdim=True) - self._pool_radius**2  # (E, 1), below 0
        depth = ((along.square() - self._squares * outside).sqrt_() - along) / self._squares
        angle = heading[:, None] - torch.atan2(right + depth * self._slopes, ahead + depth)
        bins = (angle * (NUM_BINS / math.tau)).floor_().long().bitwise_and_(NUM_BINS - 1)
        shades = depth * self._squares.sqrt() * (NUM_SHADES / (2.0 * self._pool_radius))
        colours = bins * NUM_SHADES + shades.long().clamp_(max=NUM_SHADES - 1)
        rise = self._focal * (WALL_HEIGHT - EYE_HEIGHT) / depth  # rows from the horizon to the wall's top
        return (
            self._walls.index_select(0, colours.flatten()).view(len(position), 1, -1),
            self._bound((self.height / 2 - 0.5 - rise).ceil_(), self._num_above),
            self._bound(self._rows_to(EYE_HEIGHT, depth).floor_() + 1.0, self._num_below),
        )

    def _platform(self, offset: Tensor, heading: Tensor, risen: Tensor) -> tuple[Tensor, Tensor]:
        """Where it begins and ends, in rows below the horizon, each (E, 1, 3 W) int8."""
        ahead, right = self._sides(offset, heading)
        along = ahead + right * self._slopes  # (E, W)
        outside = offset.square().sum(1, keepdim=True) - self._platform_radius**2
        chord = along.square() - self._squares * outside
        half = chord.clamp(min=0.0).sqrt_()
        far, near = (((along + sign * half) / self._squares).clamp_(min=_NEAREST) for sign in (1.0, -1.0))
        seen = (chord > 0.0) & (along + half > 0.0) & risen[:, None]
        begin = self._rows_to(EYE_HEIGHT - PLATFORM_HEIGHT, far).ceil_()  # the far edge of its top
        end = self._rows_to(EYE_HEIGHT, near).floor_() + 1.0  # the foot of its side
        return self._bound(begin * seen, self._num_below), self._bound(end * seen, self._num_below)

    # A pixel at a time

    def _paint_pool(self, pictures: Tensor, walls: Tensor, sky_rows: Tensor, wall_rows: Tensor) -> None:
        """Sky over wall over water, into (E, H, 3 W)."""
        above, below = pictures[:, : self._num_above], pictures[:, self._num_above :]
        for part, bound, before, after in (
            (above, sky_rows, self._sky, walls),
            (below, wall_rows, walls, self._water),
        ):
            torch.sub(self._rows[: part.shape[1]], bound, out=part)
            part.bitwise_right_shift_(7).bitwise_and_(before ^ after).bitwise_xor_(after)

    def _paint_platform(self, below: Tensor, begin: Tensor, end: Tensor) -> None:
        """The platform over what is there, into (E, L, 3 W)."""
        covered = self._rows - end
        covered.bitwise_and_((begin - 1) - self._rows).bitwise_right_shift_(7)
        below.bitwise_or_(covered)
