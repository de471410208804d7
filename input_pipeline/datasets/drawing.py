"""Pedestrians drawn from a seed: a small model of cross-resolution re-ID.

Who somebody is follows from (seed, pid), how a camera sees from (seed, camid), and
what happens in one picture from (seed, pid, camid, shot). Coarse colours come from a
short list that all identities share; what tells people apart is mostly fine: the
period of a stripe, a print, a strap, the shoes. Such detail is lost by down-sampling.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]
Joint = tuple[float, float, float]
Paint = Colour | Image.Image  # one colour, or a picture of the canvas to cut from
_Option = TypeVar("_Option")

# The scene is drawn on one canvas and then reduced, so that every size shows the same
# picture. 384×192 is a whole multiple of 128×64, 96×48 and 64×32.
_HEIGHT, _WIDTH = 384, 192

_TRUNK_DEPTH = 0.62  # of its width

# Few colours, repeated by how common they are: coarse colour alone must not identify.
_BLACK, _CHARCOAL, _NAVY = (36, 36, 41), (72, 74, 81), (40, 49, 86)
_DENIM, _GREY, _WHITE = (76, 102, 144), (141, 143, 147), (228, 227, 222)
_BEIGE = (184, 166, 136)
_UPPER_COLOURS = (
    *(_BLACK, _BLACK, _CHARCOAL, _NAVY, _NAVY, _GREY, _GREY, _WHITE, _WHITE),
    *(_DENIM, _BEIGE),
)
_LOWER_COLOURS = (_BLACK, _BLACK, _CHARCOAL, _NAVY, _DENIM, _DENIM, _DENIM, _GREY)
_SHOE_COLOURS = (_BLACK, _BLACK, _WHITE, _GREY)
_LEATHERS = ((34, 32, 34), (34, 32, 34), (104, 68, 44), _NAVY)
_SKINS = ((236, 198, 170), (222, 178, 144), (194, 146, 110), (126, 86, 62))
_HAIRS = (
    *((32, 26, 24), (32, 26, 24), (62, 42, 30), (62, 42, 30), (104, 72, 44)),
    *((186, 150, 92), (150, 146, 142)),
)
# Bright colours are for what is small.
_ACCENTS = (
    *((232, 230, 224), (30, 30, 34), (196, 48, 44), (232, 186, 56), (88, 156, 208)),
    *((62, 132, 84), (222, 122, 152), (226, 124, 48)),
)


class Cloth(NamedTuple):
    """A garment's colour and what is on it."""

    colour: Colour
    pattern: str  # plain, rows, columns, checks or print
    accent: Colour  # the pattern's second colour
    period: float  # of stripes and checks, in heights of the person
    motif: int  # which print


@dataclasses.dataclass(frozen=True)
class Identity:
    """What stays with a person in every picture; lengths in heights of the person."""

    head: float
    shoulders: float  # half the width
    girth: float  # factor on the width of trunk and limbs
    legs: float
    skin: Colour
    hair: Colour
    hair_style: str  # cropped, short, long, tail or bun
    hat: str  # none, cap or beanie
    hat_colour: Colour
    upper: str  # tee, sleeves, jacket (open, over a shirt) or coat
    shirt: Cloth
    jacket: Cloth
    lower: str  # trousers, shorts or skirt
    lower_colour: Colour
    side_stripe: Colour | None
    shoes: Colour
    sole: Colour
    carried: str  # nothing, backpack, shoulder_bag, handbag, shopper or suitcase
    carried_colour: Colour
    carried_detail: Colour
    carried_side: int  # −1 or 1
    scarf: Colour | None


@dataclasses.dataclass(frozen=True)
class Camera:
    """What one camera does to everybody who passes."""

    place: str  # pavement, park, shop, street, hall or brick
    wall: Colour
    ground: Colour
    horizon: float  # where wall and ground meet, as a fraction of the height
    pitch: float  # how far it looks down, in radians
    heading: float  # the direction of the path that people take, in radians
    fill: float  # height of the person as a fraction of the detector's box
    drift: float  # how far the detector puts the box too high
    gain: tuple[float, float, float]
    gamma: float
    haze: float  # how much black is lifted
    light: float  # −1 from the right … 1 from the left
    noise: float


@dataclasses.dataclass(frozen=True)
class Shot:
    """What holds for one picture only."""

    heading: float  # 0 towards the viewer, π/2 to the right, π away
    gaze: float  # how far the head is turned from the heading
    phase: float  # of the step
    stride: float  # largest swing of a leg, in radians
    bend: float  # of the elbows
    lifted_arm: int  # −1 or 1 for an arm that holds a phone, else 0
    lean: float
    fill: float
    shift: Point
    place_offset: float
    gain: tuple[float, float, float]
    shade: float  # difference of light between top and bottom
    occluder: str  # nothing, pole, bonnet, planter or passer_by
    occluder_side: int
    occluder_reach: float


def draw_pedestrian(
    seed: int, pid: int, camid: int, shot: int, *, height: int, width: int
) -> np.ndarray:
    """Draws one picture of a generated pedestrian.

    A pure function: any picture can be drawn alone and in any order. The scene has
    twice the height of its width; another aspect ratio stretches it. The noise of the
    sensor is drawn per pixel of the result, all else is the same at every size.

    Args:
      seed: which world; another seed gives other people and other cameras.
      pid: who is seen, at least 0.
      camid: by which camera, at least 0.
      shot: number of the picture of this person by this camera, at least 0.
      height: of the picture in pixels.
      width: of the picture in pixels.

    Returns:
      (height, width, 3) uint8, RGB.

    Raises:
      ValueError: if a size is not positive, or a number is negative.
    """
    numbers = {"seed": seed, "pid": pid, "camid": camid, "shot": shot}
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"{name} must be at least 0, got {number}")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be positive, got {height}×{width}")

    person, camera = identity_of(seed, pid), camera_of(seed, camid)
    rng = _rng(seed, 2, pid, camid, shot)
    moment = _draw_shot(rng, camera)
    view = _view(camera, moment)

    scene = _paint_place(camera, moment)
    _paint_shadow(scene, view, camera)
    figure = _paint_person(person, moment, view)
    _paint_occluder(figure, camera, moment, rng)
    scene.paste(figure, (0, 0), figure)
    relief = _relief(figure.getchannel("A"), camera, height, width)
    picture = scene.resize((width, height), Image.Resampling.BOX)
    return _expose(np.asarray(picture), relief, camera, moment, rng)


@functools.lru_cache(maxsize=4096)
def identity_of(seed: int, pid: int) -> Identity:
    """Returns who `pid` is in the world of `seed`."""
    return _draw_identity(_rng(seed, 0, pid))


@functools.lru_cache(maxsize=256)
def camera_of(seed: int, camid: int) -> Camera:
    """Returns how camera `camid` sees in the world of `seed`."""
    rng = _rng(seed, 1, camid)
    places = ("pavement", "park", "shop", "street", "hall", "brick")
    cast = rng.normal(0, 0.07, 3)
    brightness = rng.uniform(0.72, 1.12)
    return Camera(
        # In turn, so that a world of few cameras does not see one place twice.
        place=places[(seed + camid) % len(places)],
        wall=_pick(rng, ((158, 150, 140), (120, 124, 130), (182, 172, 152))),
        ground=_pick(rng, ((128, 126, 124), (104, 104, 108), (150, 142, 130))),
        horizon=rng.uniform(0.24, 0.5),
        pitch=rng.uniform(0.08, 0.4),
        heading=rng.uniform(-math.pi / 2, math.pi / 2),
        fill=rng.uniform(0.84, 0.96),
        drift=rng.normal(0, 0.012),
        gain=tuple(brightness * (1 + cast - cast.mean())),
        gamma=rng.uniform(0.8, 1.3),
        haze=rng.uniform(0, 0.14),
        light=rng.uniform(-1, 1),
        noise=rng.uniform(0.008, 0.024),
    )


def _draw_identity(rng: np.random.Generator) -> Identity:
    accent = functools.partial(_pick, rng, _ACCENTS)
    return Identity(
        head=rng.uniform(0.125, 0.14),
        shoulders=rng.uniform(0.1, 0.118),
        girth=rng.uniform(0.9, 1.15),
        legs=rng.uniform(0.475, 0.51),
        skin=_pick(rng, _SKINS),
        hair=_pick(rng, _HAIRS),
        hair_style=_pick(rng, ("cropped", "short", "short", "long", "tail", "bun")),
        hat=_pick(rng, ("none",) * 8 + ("cap", "beanie")),
        hat_colour=accent(),
        upper=_pick(
            rng, ("tee",) * 3 + ("sleeves",) * 3 + ("jacket", "jacket", "coat")
        ),
        shirt=_draw_cloth(rng),
        jacket=_draw_cloth(rng, patterns=("plain", "plain", "plain", "checks")),
        lower=_pick(rng, ("trousers",) * 6 + ("shorts", "shorts", "skirt")),
        lower_colour=_pick(rng, _LOWER_COLOURS),
        side_stripe=_pick(rng, (None, None, accent())),
        shoes=_pick(rng, (*_SHOE_COLOURS, accent(), accent())),
        sole=_pick(rng, _ACCENTS[:2]),
        carried=_pick(
            rng,
            (
                *("nothing", "nothing", "backpack", "backpack", "shoulder_bag"),
                *("shoulder_bag", "handbag", "shopper", "suitcase"),
            ),
        ),
        carried_colour=_pick(rng, _LEATHERS),
        carried_detail=accent(),
        carried_side=_pick(rng, (-1, 1)),
        scarf=_pick(rng, (None,) * 7 + (accent(),)),
    )


def _draw_cloth(
    rng: np.random.Generator,
    patterns: Sequence[str] = ("plain", "rows", "columns", "checks", "print", "print"),
) -> Cloth:
    colour, pattern = _pick(rng, _UPPER_COLOURS), _pick(rng, patterns)
    # Stripes and checks mix two common colours: from afar navy and white are denim,
    # black and white are grey. A print is bright.
    accents = _ACCENTS if pattern == "print" else _UPPER_COLOURS
    return Cloth(
        colour=colour,
        pattern=pattern,
        accent=_pick(rng, [a for a in accents if math.dist(a, colour) > 90]),
        period=rng.uniform(0.028, 0.055),
        motif=int(rng.integers(5)),
    )


def _draw_shot(rng: np.random.Generator, camera: Camera) -> Shot:
    # People come and go along the camera's path; a few cross it.
    heading = camera.heading + _pick(rng, (0, math.pi)) + rng.normal(0, 0.35)
    if rng.random() < 0.2:
        heading = rng.uniform(0, 2 * math.pi)
    occluders = ("nothing",) * 16 + ("pole", "bonnet", "planter", "passer_by")
    return Shot(
        heading=heading,
        gaze=rng.normal(0, 0.35),
        phase=rng.uniform(0, 2 * math.pi),
        stride=rng.uniform(0.15, 0.5),
        bend=rng.uniform(0.1, 0.8),
        lifted_arm=_pick(rng, (0,) * 6 + (-1, 1)),
        lean=rng.normal(0, 0.03),
        fill=camera.fill * math.exp(rng.normal(0, 0.05)),
        shift=(rng.normal(0, 0.05), rng.normal(0, 0.02) + camera.drift),
        place_offset=rng.uniform(0, 1),
        gain=tuple(np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.04, 3))),
        shade=rng.normal(0, 0.12),
        occluder=_pick(rng, occluders),
        occluder_side=_pick(rng, (-1, 1)),
        occluder_reach=rng.uniform(0, 1),
    )


def _rng(seed: int, stream: int, *numbers: int) -> np.random.Generator:
    """Returns the generator of one thing; the counter's low word stays free."""
    counter = [0, *numbers, 0, 0, 0][:4]
    key = np.array([seed, stream], np.uint64)
    return np.random.Generator(
        np.random.Philox(key=key, counter=np.array(counter, np.uint64))
    )


def _pick(rng: np.random.Generator, options: Sequence[_Option]) -> _Option:
    """Draws one option; `rng.choice` would turn it into an array, and is slower."""
    return options[int(rng.integers(len(options)))]


@dataclasses.dataclass(frozen=True)
class _View:
    """From body space to the canvas.

    Body space has the person's height as its unit: x to the person's left, y down from
    the crown, z to the person's front.
    """

    heading: float
    pitch: float
    lean: float
    size: float  # the person's height in pixels of the canvas
    left: float
    top: float

    def __call__(self, x: float, y: float, z: float = 0.0) -> Point:
        across = x * math.cos(self.heading) + z * math.sin(self.heading)
        # Seen from above, what is nearer is lower in the picture.
        down = y + self.depth(x, z) * math.sin(self.pitch)
        return (
            self.left + self.size * (across + self.lean * (1 - y)),
            self.top + self.size * down,
        )

    def depth(self, x: float, z: float = 0.0) -> float:
        """Returns how much nearer to the viewer than the body's axis."""
        return z * math.cos(self.heading) - x * math.sin(self.heading)

    def breadth(self, half_width: float, half_depth: float) -> float:
        """Returns half of the visible width of an upright elliptic cylinder."""
        return math.hypot(
            half_width * math.cos(self.heading), half_depth * math.sin(self.heading)
        )

    @property
    def facing(self) -> float:
        """1 when the person comes, −1 when the person goes."""
        return math.cos(self.heading)


def _view(camera: Camera, shot: Shot) -> _View:
    size = shot.fill * _HEIGHT
    across, down = shot.shift
    return _View(
        heading=shot.heading,
        pitch=camera.pitch,
        lean=shot.lean,
        size=size,
        left=_WIDTH * (0.5 + across),
        top=(_HEIGHT - size) / 2 + _HEIGHT * down,
    )


class _Limb(NamedTuple):
    """Three joints in body space: shoulder, elbow, wrist or hip, knee, ankle."""

    side: int  # −1 the right, 1 the left
    root: Joint
    middle: Joint
    end: Joint


def _bend(
    side: int,
    root: Joint,
    lengths: Point,
    angles: Point,
    spread: float,
) -> _Limb:
    """Hangs two bones from `root`, each turned forward by its angle."""
    joints = [root]
    for length, angle in zip(lengths, angles, strict=True):
        x, y, z = joints[-1]
        joints.append(
            (
                x + side * spread * length,
                y + math.cos(angle) * length,
                z + math.sin(angle) * length,
            )
        )
    return _Limb(side, *joints)


def _legs(person: Identity, shot: Shot) -> list[_Limb]:
    hip = 1 - person.legs
    limbs = []
    for side in (-1, 1):
        swing = side * shot.stride * math.sin(shot.phase)
        # The knee bends while its leg comes forward.
        knee = 0.08 + 1.5 * shot.stride * max(0.0, side * math.cos(shot.phase))
        limbs.append(
            _bend(
                side,
                (side * 0.042 * person.girth, hip, 0.0),
                (0.49 * person.legs, 0.44 * person.legs),
                (swing + knee * 0.4, swing - knee * 0.6),
                0.01,
            )
        )
    return limbs


def _arms(person: Identity, shot: Shot) -> list[_Limb]:
    limbs = []
    for side in (-1, 1):
        swing = -0.9 * side * shot.stride * math.sin(shot.phase)
        bend = 2.1 if side == shot.lifted_arm else shot.bend
        limbs.append(
            _bend(
                side,
                (side * (person.shoulders - 0.026), person.head + 0.082, 0.0),
                (0.165, 0.15),
                (swing, swing + bend),
                0.12 * person.girth,
            )
        )
    return limbs


class _Painter:
    """Paints shapes, in pixels of the canvas, on one transparent layer."""

    def __init__(self, view: _View):
        self.view = view
        self.layer = Image.new("RGBA", (_WIDTH, _HEIGHT))
        self._pen = ImageDraw.Draw(self.layer)

    def shape(self, outline: Sequence[Point], paint: Paint) -> None:
        if isinstance(paint, Image.Image):
            mask = Image.new("L", self.layer.size)
            ImageDraw.Draw(mask).polygon(outline, fill=255)
            self.layer.paste(paint, (0, 0), mask)
        else:
            self._pen.polygon(outline, fill=paint)

    def bone(self, a: Point, b: Point, radii: Point, paint: Paint) -> None:
        """Paints a tapered stroke with round ends; radii in heights of the person."""
        scaled = [radius * self.view.size for radius in radii]
        self.shape(_capsule(a, b, *scaled), paint)

    def oval(self, centre: Point, rx: float, ry: float, paint: Colour) -> None:
        x, y = centre
        rx, ry = rx * self.view.size, ry * self.view.size
        self._pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=paint)

    def box(
        self,
        top: Point,
        half_width: float,
        height: float,
        paint: Colour,
        *,
        radius: float = 0.0,
    ) -> None:
        """Paints an upright box that hangs from the middle of its upper edge."""
        (x, y), size = top, self.view.size
        half_width, height = half_width * size, height * size
        corners = (x - half_width, y, x + half_width, y + height)
        self._pen.rounded_rectangle(corners, radius * size, fill=paint)

    def line(self, points: Sequence[Point], thickness: float, paint: Colour) -> None:
        pixels = max(1, round(thickness * self.view.size))
        self._pen.line(points, fill=paint, width=pixels, joint="curve")


def _capsule(a: Point, b: Point, ra: float, rb: float) -> list[Point]:
    along = math.atan2(b[1] - a[1], b[0] - a[0])
    outline = []
    for (x, y), radius, start in (
        (a, ra, along + math.pi / 2),
        (b, rb, along - math.pi / 2),
    ):
        for step in range(7):
            turn = start + math.pi * step / 6
            outline.append((x + radius * math.cos(turn), y + radius * math.sin(turn)))
    return outline


@functools.lru_cache(maxsize=4)
def _weave(cloth: Cloth, view: _View) -> Paint:
    """Returns the cloth as one colour, or as a picture that hangs on the body."""
    if cloth.pattern not in ("rows", "columns", "checks"):
        return cloth.colour
    x, y = view(0.0, 0.0)
    period = cloth.period * view.size
    rows = (np.arange(_HEIGHT)[:, None] - y) / period % 1 < 0.5  # (H, 1)
    columns = (np.arange(_WIDTH)[None, :] - x) / period % 1 < 0.5  # (1, W)
    both = {"rows": 2 * rows, "columns": 2 * columns, "checks": 1 * rows + columns}
    threads = np.broadcast_to(both[cloth.pattern], (_HEIGHT, _WIDTH))
    blend = np.linspace(cloth.colour, cloth.accent, 3).astype(np.uint8)
    return Image.fromarray(blend[threads])


def _paint_person(person: Identity, shot: Shot, view: _View) -> Image.Image:
    """Returns the person on a transparent canvas, painted from far to near."""
    painter = _Painter(view)
    legs, arms = _legs(person, shot), _arms(person, shot)
    for limbs in (legs, arms):
        limbs.sort(key=lambda limb: view.depth(limb.middle[0], limb.middle[2]))

    behind = [arm for arm in arms if view.depth(arm.middle[0], arm.middle[2]) < 0]
    before = [arm for arm in arms if arm not in behind]
    if view.facing > 0:
        _paint_backpack(painter, person)
    for arm in behind:
        _paint_arm(painter, person, arm)
    for leg in legs:
        _paint_leg(painter, person, leg)
    _paint_trunk(painter, person)
    _paint_straps(painter, person)
    if view.facing <= 0:
        _paint_backpack(painter, person)
    _paint_head(painter, person, shot)
    for arm in before:
        _paint_arm(painter, person, arm)
    return painter.layer


def _paint_leg(painter: _Painter, person: Identity, leg: _Limb) -> None:
    view, girth = painter.view, person.girth
    hip, knee, ankle = (view(*joint) for joint in (leg.root, leg.middle, leg.end))
    far = view.depth(leg.middle[0], leg.middle[2]) < 0
    light = 0.86 if far else 1.0  # what sets one leg off the other
    skin, cloth = _dim(person.skin, light), _dim(person.lower_colour, light)

    heel = view(leg.end[0], leg.end[1] + 0.028, leg.end[2] - 0.015)
    toe = view(leg.end[0], leg.end[1] + 0.03, leg.end[2] + 0.075)
    painter.bone(heel, toe, (0.023, 0.02), person.sole)
    lifted = [(x, y - 0.009 * view.size) for x, y in (heel, toe)]
    painter.bone(*lifted, (0.023, 0.02), person.shoes)

    bare = {"trousers": False, "shorts": True, "skirt": True}[person.lower]
    painter.bone(knee, ankle, (0.036 * girth, 0.024), skin if bare else cloth)
    painter.bone(hip, knee, (0.052 * girth, 0.038 * girth), skin if bare else cloth)
    if person.lower == "shorts":
        painter.bone(
            hip, _between(hip, knee, 0.8), (0.054 * girth, 0.05 * girth), cloth
        )
    elif person.lower == "trousers":
        painter.bone(
            _between(knee, ankle, 0.5), ankle, (0.033 * girth, 0.031 * girth), cloth
        )
        outside = view.depth(leg.side * 1.0) > -0.4
        if person.side_stripe and outside:
            seam = [
                view(x + leg.side * 0.036 * girth, y, z)
                for x, y, z in (leg.root, leg.middle, leg.end)
            ]
            painter.line(seam, 0.012, person.side_stripe)


def _paint_arm(painter: _Painter, person: Identity, arm: _Limb) -> None:
    view, girth = painter.view, person.girth
    cloth = person.jacket if person.upper in ("jacket", "coat") else person.shirt
    paint = _weave(cloth, view)
    shoulder, elbow, wrist = (view(*joint) for joint in (arm.root, arm.middle, arm.end))
    upper, lower = (0.034 * girth, 0.028 * girth), (0.029 * girth, 0.02 * girth)
    rim = 0.005  # a darker edge, without which arm and trunk would be one
    edge = _dim(cloth.colour, 0.7)

    if person.carried_side == arm.side:
        _paint_hand_luggage(painter, person, arm)
    painter.oval(wrist, 0.021, 0.024, person.skin)
    if person.upper == "tee":
        cuff = _between(shoulder, elbow, 0.8)
        painter.bone(elbow, wrist, lower, person.skin)
        painter.bone(shoulder, elbow, upper, person.skin)
        painter.bone(shoulder, cuff, (upper[0] + rim, upper[0] + rim), edge)
        painter.bone(shoulder, cuff, (upper[0], upper[0]), paint)
    else:
        bones = ((shoulder, elbow, upper), (elbow, wrist, lower))
        for a, b, (ra, rb) in bones:
            painter.bone(a, b, (ra + rim, rb + rim), edge)
        for a, b, radii in bones:
            painter.bone(a, b, radii, paint)


def _trunk(view: _View, levels: Sequence[Point]) -> list[Point]:
    """Returns the outline of a trunk through (y, half width) from top to bottom."""
    left, right = [], []
    for y, half_width in levels:
        x, down = view(0.0, y)
        breadth = view.breadth(half_width, _TRUNK_DEPTH * half_width) * view.size
        left.append((x - breadth, down))
        right.append((x + breadth, down))
    return left + right[::-1]


def _front(view: _View, levels: Sequence[Point]) -> list[Point]:
    """Returns the outline of a panel down the middle of the trunk's front."""
    left, right = [], []
    for y, half_width in levels:
        # The panel reaches 0.4 rad to both sides around the trunk.
        across = half_width * math.sin(0.4)
        forward = _TRUNK_DEPTH * half_width * math.cos(0.4)
        left.append(view(-across, y, forward))
        right.append(view(across, y, forward))
    return left + right[::-1]


def _paint_trunk(painter: _Painter, person: Identity) -> None:
    view, girth, head = painter.view, person.girth, person.head
    hip = 1 - person.legs
    chest = (
        (head + 0.018, 0.036),
        (head + 0.042, 0.66 * person.shoulders),
        (head + 0.07, 0.93 * person.shoulders),
        (head + 0.15, 0.84 * person.shoulders * math.sqrt(girth)),
    )
    waist, hem = (hip - 0.09, 0.078 * girth), (hip + 0.02, 0.09 * girth)

    length, flare = (0.2, 0.115) if person.lower == "skirt" else (0.05, 0.088)
    seat = (waist, hem, (hip + length, flare * girth))
    painter.shape(_trunk(view, seat), person.lower_colour)

    shirt = _weave(person.shirt, view)
    if person.upper in ("tee", "sleeves"):
        painter.shape(_trunk(view, (*chest, waist, hem)), shirt)
        _paint_print(painter, person)
        return
    length, flare = (0.2, 0.112) if person.upper == "coat" else (0.035, 0.096)
    outer = (*chest, waist, (hip + length, flare * girth))
    painter.shape(_trunk(view, outer), _weave(person.jacket, view))
    if view.facing > 0.1:
        # A jacket hangs open over the shirt, a coat shows its collar.
        gap = (*chest, waist, hem) if person.upper == "jacket" else chest[:3]
        painter.shape(_front(view, gap), shirt)


def _paint_print(painter: _Painter, person: Identity) -> None:
    """Paints the motif, which is on the front and on the back of the shirt."""
    view, accent = painter.view, person.shirt.accent
    turn = abs(view.facing)
    if person.shirt.pattern != "print" or turn < 0.25:
        return
    depth = math.copysign(_TRUNK_DEPTH * person.shoulders, view.facing)
    y, half = person.head + 0.15, 0.05
    centre = view(0.0, y, depth)

    def bar(y: float, share: float, thickness: float) -> None:
        ends = [view(x * half * share, y, depth) for x in (-1, 1)]
        painter.line(ends, thickness, accent)

    match person.shirt.motif:
        case 0:
            bar(y, 1.5, 0.022)
        case 1:
            bar(y, 0.9, 0.08)
        case 2:
            painter.oval(centre, 0.85 * half * turn, 0.85 * half, accent)
            painter.oval(centre, 0.4 * half * turn, 0.4 * half, person.shirt.colour)
        case 3:
            for row, share in enumerate((1.0, 0.7, 0.9)):
                bar(y + 0.028 * (row - 1), share, 0.011)
        case _:
            x, y = centre
            across, down = half * view.size * turn, half * view.size
            diamond = [(x, y - down), (x + across, y), (x, y + down), (x - across, y)]
            painter.shape(diamond, accent)


def _paint_head(painter: _Painter, person: Identity, shot: Shot) -> None:
    view, head = painter.view, person.head
    turned = dataclasses.replace(view, heading=view.heading + shot.gaze)
    half = head / 2
    breadth = turned.breadth(0.76 * half, 0.9 * half)
    crown = view(0.0, half)

    neck = (crown, view(0.0, head + 0.04), (0.026, 0.034), _dim(person.skin, 0.85))
    painter.bone(*neck)
    if person.hair_style == "long":
        tips = view(0.0, head + 0.05)
        painter.bone(crown, tips, (breadth, 0.75 * breadth), _dim(person.hair, 0.9))
        if turned.facing > 0:
            painter.bone(*neck)  # seen from the front, long hair is behind the neck
    _paint_scarf(painter, person)
    if turned.facing > 0:
        _paint_knot(painter, turned, person)
    painter.oval(crown, breadth, half, person.hair)

    sideways = math.sin(turned.heading)
    if turned.facing > -0.5:
        facing = turned.facing
        width = breadth * (0.62 + (0.22 if facing > 0 else 0.6) * facing)
        low = 0.56 if person.hair_style == "cropped" else 0.6
        x, y = turned(0.0, low * head)
        # In profile the face reaches the outline of the head.
        face = (x + sideways * (breadth - width) * view.size, y)
        painter.oval(face, width, (1 - low) * head, person.skin)
        if abs(sideways) > 0.6:  # in profile the hair reaches down behind the ear
            ear = turned(0.0, 0.52 * head, -0.2 * head)
            painter.oval(ear, 0.5 * breadth, 0.3 * head, person.hair)
            nose = turned(0.0, 0.6 * head, 0.42 * head)
            painter.oval(nose, 0.008, 0.008, person.skin)
    for eye in (-0.024, 0.024):
        if turned.depth(eye, 0.045) > 0.015:
            painter.oval(turned(eye, 0.53 * head, 0.045), 0.006, 0.004, _BLACK)
    if turned.facing > 0.3:
        lips = [turned(x, 0.79 * head, 0.05) for x in (-0.012, 0.012)]
        painter.line(lips, 0.005, _dim(person.skin, 0.68))
    if turned.facing <= 0:
        _paint_knot(painter, turned, person)
    _paint_hat(painter, turned, person, breadth)


def _paint_knot(painter: _Painter, turned: _View, person: Identity) -> None:
    """Paints the hair that is tied behind the head."""
    head, hair = person.head, _dim(person.hair, 0.85)
    if person.hair_style == "bun":
        painter.oval(turned(0.0, 0.16 * head, -0.055), 0.028, 0.026, hair)
    elif person.hair_style == "tail":
        root, tip = turned(0.0, 0.35 * head, -0.06), turned(0.0, head + 0.05, -0.085)
        painter.bone(root, tip, (0.018, 0.012), hair)


def _paint_hat(
    painter: _Painter, turned: _View, person: Identity, breadth: float
) -> None:
    if person.hat == "none":
        return
    head, colour = person.head, person.hat_colour
    x, y = turned(0.0, 0.42 * head)
    across, up = 1.08 * breadth * turned.size, 0.5 * head * turned.size
    angles = [math.pi * step / 10 for step in range(11)]
    dome = [(x + across * math.cos(a), y - up * math.sin(a)) for a in angles]
    painter.shape(dome, colour)
    if person.hat == "cap":
        brim = [turned(0.0, 0.4 * head, z) for z in (0.03, 0.095)]
        if turned.facing > -0.5:
            painter.bone(*brim, (0.02, 0.012), _dim(colour, 0.75))
    else:
        painter.line([(x - across, y), (x + across, y)], 0.018, _dim(colour, 0.75))


def _paint_scarf(painter: _Painter, person: Identity) -> None:
    if person.scarf is None:
        return
    view, y = painter.view, person.head + 0.026
    painter.bone(view(-0.03, y), view(0.03, y), (0.024, 0.024), person.scarf)
    if view.facing > 0:
        loose = view(0.022, y, 0.06), view(0.03, y + 0.13, 0.075)
        painter.bone(*loose, (0.016, 0.018), _dim(person.scarf, 0.88))


def _paint_backpack(painter: _Painter, person: Identity) -> None:
    if person.carried != "backpack":
        return
    view, y, colour = painter.view, person.head + 0.06, person.carried_colour
    half = view.breadth(0.088, 0.06)
    painter.box(view(0.0, y, -0.1), half, 0.25, colour, radius=0.03)
    if view.facing < 0.4:
        pocket, zip_ = view(0.0, y + 0.135, -0.1), view(0.0, y + 0.12, -0.1)
        painter.box(pocket, 0.7 * half, 0.09, _dim(colour, 0.75), radius=0.015)
        painter.box(zip_, 0.7 * half, 0.01, person.carried_detail)


def _paint_straps(painter: _Painter, person: Identity) -> None:
    """Paints what a bag shows across the trunk."""
    view, y = painter.view, person.head + 0.045
    reach = _TRUNK_DEPTH * person.shoulders
    if person.carried == "backpack" and view.facing > 0.1:
        for x in (-0.062, 0.062):
            strap = view(x, y, 0.5 * reach), view(1.1 * x, y + 0.2, reach)
            painter.line(strap, 0.017, person.carried_colour)
    if person.carried == "shoulder_bag":
        side, hip = person.carried_side, 1 - person.legs
        forward = math.copysign(reach, view.facing)
        strap = view(-0.06 * side, y, 0.4 * forward), view(0.09 * side, hip, forward)
        painter.line(strap, 0.012, person.carried_detail)
        if view.depth(0.1 * side) > -0.06:
            top, half = view(0.105 * side, hip - 0.02), view.breadth(0.035, 0.07)
            colour = person.carried_colour
            painter.box(top, half, 0.11, colour, radius=0.015)
            painter.box(top, half, 0.045, _dim(colour, 0.75), radius=0.01)


def _paint_hand_luggage(painter: _Painter, person: Identity, arm: _Limb) -> None:
    """Paints what hangs from the hand, or rolls behind it."""
    view, colour, detail = painter.view, person.carried_colour, person.carried_detail
    (x, y, z), hand = arm.end, view(*arm.end)
    if person.carried in ("handbag", "shopper"):
        wide, high = (0.062, 0.1) if person.carried == "handbag" else (0.058, 0.17)
        half = view.breadth(0.35 * wide, wide)
        for share in (-0.6, 0.6):
            left, top = view(x, y + 0.055, z)
            handle = hand, (left + share * half * view.size, top)
            painter.line(handle, 0.008, _dim(colour, 0.7))
        painter.box(view(x, y + 0.055, z), half, high, colour, radius=0.01)
        painter.box(view(x, y + 0.085, z), 0.5 * half, 0.03, detail)
    elif person.carried == "suitcase":
        x, z = 1.35 * x, z - 0.14
        half = view.breadth(0.085, 0.055)
        painter.line([hand, view(x, 0.7, z)], 0.009, _GREY)
        painter.box(view(x, 0.7, z), half, 0.29, colour, radius=0.02)
        for rib in (0.785, 0.87):
            painter.box(view(x, rib, z), half, 0.009, detail)


def _dim(colour: Colour, factor: float) -> Colour:
    red, green, blue = colour
    return round(red * factor), round(green * factor), round(blue * factor)


def _between(a: Point, b: Point, share: float) -> Point:
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])


def _paint_place(camera: Camera, shot: Shot) -> Image.Image:
    """Returns the empty scene; people stand at different parts of one place."""
    horizon = round(camera.horizon * _HEIGHT)
    rows = np.arange(_HEIGHT)[:, None, None] / _HEIGHT  # (H, 1, 1)
    wall, ground = np.array(camera.wall), np.array(camera.ground)
    if camera.place == "park":
        wall, ground = np.array((96, 124, 84)), np.array((116, 146, 82))
    above = wall * (1.05 - 0.3 * rows)
    below = ground * (0.85 + 0.25 * rows)
    colours = np.where(rows * _HEIGHT < horizon, above, below).clip(0, 255)
    scene = Image.fromarray(
        np.broadcast_to(colours, (_HEIGHT, _WIDTH, 3)).astype(np.uint8)
    )
    pen = ImageDraw.Draw(scene, "RGBA")  # fills with alpha are blended
    paint = {
        "pavement": _paint_pavement,
        "park": _paint_park,
        "shop": _paint_shop,
        "street": _paint_street,
        "hall": _paint_hall,
        "brick": _paint_brick,
    }
    paint[camera.place](pen, horizon, shot.place_offset)
    return scene


def _repeat(period: float, offset: float) -> list[float]:
    """Returns where things stand that come back every `period` pixels."""
    first = (offset - 1) * period
    return [first + period * k for k in range(math.ceil(_WIDTH / period) + 2)]


def _paint_tiles(
    pen: ImageDraw.ImageDraw, horizon: int, offset: float, size: float, shade: int
) -> None:
    """Paints the joints of a tiled ground in perspective."""
    joint = (0, 0, 0, shade)
    depth = 1.0
    while (y := horizon + (_HEIGHT - horizon) / depth) > horizon + 6:
        pen.line((0, y, _WIDTH, y), fill=joint, width=2)
        depth += 0.35 * size
    middle = _WIDTH / 2
    for x in _repeat(60 * size, offset):
        far, near = middle + (x - middle) * 0.8, middle + (x - middle) * 2.6
        pen.line((far, horizon, near, _HEIGHT), fill=joint, width=2)


def _paint_pavement(pen: ImageDraw.ImageDraw, horizon: int, offset: float) -> None:
    for x in _repeat(110, offset):
        pen.rectangle((x, -20, x + 52, horizon - 60), fill=(52, 62, 74))
        pen.rectangle((x, -20, x + 52, horizon - 60), outline=(214, 210, 202), width=4)
        pen.line((x + 26, 0, x + 26, horizon - 60), fill=(214, 210, 202), width=3)
    pen.rectangle((0, horizon - 22, _WIDTH, horizon), fill=(0, 0, 0, 70))
    _paint_tiles(pen, horizon, offset, 1.0, 40)


def _paint_park(pen: ImageDraw.ImageDraw, horizon: int, offset: float) -> None:
    for k, x in enumerate(_repeat(34, offset)):
        top = horizon - 44 - 16 * (k % 3)
        pen.ellipse((x - 30, top, x + 34, horizon + 20), fill=(58, 92, 54))
        pen.ellipse((x - 18, top + 8, x + 10, top + 34), fill=(78, 114, 66))
    for x in _repeat(150, offset):
        pen.rectangle((x, -5, x + 20, horizon + 26), fill=(84, 68, 52))
        pen.rectangle((x + 13, -5, x + 20, horizon + 26), fill=(64, 50, 40))
    path = 0.5 + 0.3 * (offset - 0.5)
    edges = (path - 0.2, horizon + 30), (path + 0.15, horizon + 30)
    near = (path + 0.75, _HEIGHT), (path - 0.65, _HEIGHT)
    pen.polygon([(x * _WIDTH, y) for x, y in (*edges, *near)], fill=(176, 164, 138))


def _paint_shop(pen: ImageDraw.ImageDraw, horizon: int, offset: float) -> None:
    goods = ((206, 92, 72), (226, 196, 110), (96, 132, 168), (232, 228, 220))
    for k, x in enumerate(_repeat(130, offset)):
        pen.rectangle((x, 24, x + 112, horizon - 8), fill=(64, 76, 84))
        for j in range(3):
            left = x + 10 + 34 * j
            pen.rectangle(
                (left, horizon - 56 - 14 * j, left + 22, horizon - 14),
                fill=goods[(k + j) % 4],
            )
        glare = (x + 20, 24), (x + 50, 24), (x + 14, horizon - 8), (x, horizon - 8)
        pen.polygon(glare, fill=(255, 255, 255, 40))
    pen.rectangle((0, 0, _WIDTH, 22), fill=(150, 52, 50))
    _paint_tiles(pen, horizon, offset, 0.7, 60)


def _paint_street(pen: ImageDraw.ImageDraw, horizon: int, offset: float) -> None:
    for x in _repeat(170, offset):
        pen.rectangle((x, 10, x + 44, horizon - 30), fill=(86, 78, 72))
        pen.rectangle((x + 70, 14, x + 130, horizon - 70), fill=(186, 200, 210))
    pen.rectangle((0, horizon, _WIDTH, _HEIGHT), fill=(30, 32, 40, 110))
    pen.rectangle((0, horizon, _WIDTH, horizon + 10), fill=(190, 188, 182))
    for x in _repeat(240, offset):
        roof = (x + 40, horizon - 46), (x + 110, horizon - 46)
        cabin = (*roof, (x + 134, horizon - 16), (x + 18, horizon - 16))
        pen.polygon(cabin, fill=(70, 84, 96))
        pen.rounded_rectangle(
            (x, horizon - 20, x + 160, horizon + 14), 12, fill=(150, 44, 46)
        )
        for wheel in (x + 20, x + 112):
            pen.ellipse((wheel, horizon, wheel + 26, horizon + 26), fill=(26, 26, 28))
    for x in _repeat(70, offset):
        slant = (x, horizon + 60), (x + 30, horizon + 60), (x + 6, _HEIGHT)
        pen.polygon((*slant, (x - 36, _HEIGHT)), fill=(222, 222, 216, 150))


def _paint_hall(pen: ImageDraw.ImageDraw, horizon: int, offset: float) -> None:
    pen.rectangle((0, 0, _WIDTH, horizon), fill=(236, 232, 220, 120))
    pen.rectangle((0, 26, _WIDTH, 44), fill=(52, 96, 138))
    for x in _repeat(120, offset):
        pen.rectangle((x, 0, x + 30, horizon + 12), fill=(176, 172, 162))
        pen.rectangle((x + 22, 0, x + 30, horizon + 12), fill=(140, 136, 128))
        pen.rectangle((x + 52, 58, x + 92, horizon - 20), fill=(92, 104, 108))
    pen.rectangle((0, horizon, _WIDTH, _HEIGHT), fill=(226, 220, 206, 90))
    _paint_tiles(pen, horizon, offset, 1.4, 50)


def _paint_brick(pen: ImageDraw.ImageDraw, horizon: int, offset: float) -> None:
    pen.rectangle((0, 0, _WIDTH, horizon), fill=(142, 78, 60, 200))
    for row, y in enumerate(range(0, horizon, 12)):
        pen.line((0, y, _WIDTH, y), fill=(206, 190, 174, 110), width=2)
        for x in _repeat(28, (offset * 5 + row / 2) % 1):
            pen.line((x, y, x, min(y + 12, horizon)), fill=(206, 190, 174, 90), width=2)
    for x in _repeat(210, offset):
        pen.rectangle((x, horizon - 54, x + 40, horizon + 18), fill=(46, 70, 60))
        pen.rectangle((x - 3, horizon - 60, x + 43, horizon - 50), fill=(34, 52, 46))
    _paint_tiles(pen, horizon, offset, 0.55, 35)


def _paint_shadow(scene: Image.Image, view: _View, camera: Camera) -> None:
    pen = ImageDraw.Draw(scene, "RGBA")
    x, y = view(0.0, 1.0)
    x -= 0.06 * view.size * camera.light  # away from the light
    for reach in (0.2, 0.15, 0.1):
        across, down = reach * view.size, 0.22 * reach * view.size
        pen.ellipse((x - across, y - down, x + across, y + down), fill=(0, 0, 0, 45))


def _paint_occluder(
    figure: Image.Image, camera: Camera, shot: Shot, rng: np.random.Generator
) -> None:
    """Paints what stands between the camera and the person, if anything does."""
    pen = ImageDraw.Draw(figure)
    side, reach = shot.occluder_side, shot.occluder_reach
    middle = _WIDTH / 2
    if shot.occluder == "pole":
        x, half = middle + side * (20 + 50 * reach), 7 + 5 * reach
        pen.rectangle((x - half, 0, x + half, _HEIGHT), fill=(98, 102, 104))
        pen.rectangle((x - half, 0, x - half / 3, _HEIGHT), fill=(150, 154, 156))
    elif shot.occluder == "bonnet":
        top = _HEIGHT * (0.9 - 0.18 * reach)
        far = middle - side * 150
        near = middle + side * 120
        outline = (far, top + 50), (middle, top + 8), (near, top), (near, _HEIGHT)
        pen.polygon((*outline, (far, _HEIGHT)), fill=(70, 86, 112))
        pen.line(outline[:3], fill=(150, 166, 186), width=6)
    elif shot.occluder == "planter":
        x, top = middle + side * 60, _HEIGHT * (0.82 - 0.1 * reach)
        for leaf in range(-3, 4):
            tip, left = top - 34 + 4 * abs(leaf), x + 18 * leaf - 22
            green = (52, 84 + 8 * (leaf % 3), 50)
            pen.ellipse((left, tip, left + 44, top + 30), fill=green)
        pen.rectangle((x - 66, top + 10, x + 66, _HEIGHT), fill=(138, 126, 112))
        pen.rectangle((x - 66, top + 10, x + 66, top + 20), fill=(164, 152, 136))
    elif shot.occluder == "passer_by":
        other, moment = _draw_identity(rng), _draw_shot(rng, camera)
        view = _view(camera, moment)
        aside = side * (0.62 - 0.18 * reach)
        view = dataclasses.replace(
            view, left=_WIDTH * (0.5 + aside), size=1.08 * view.size
        )
        figure.alpha_composite(_paint_person(other, moment, view))


def _relief(
    silhouette: Image.Image, camera: Camera, height: int, width: int
) -> np.ndarray:
    """Returns the light on flat bodies that makes them look round.

    A body darkens towards its outline, and more on the side away from the light.

    Args:
      silhouette: mode L, of the canvas; where a body is.
      camera: says from where the light comes.
      height: of the picture in pixels.
      width: of the picture in pixels.

    Returns:
      (height, width) float32, a factor; one outside of the bodies.
    """
    body = silhouette.resize((width, height), Image.Resampling.BOX)
    sigma = 0.02 * height
    soft = np.asarray(body.filter(ImageFilter.GaussianBlur(sigma)), np.float32) / 255
    # Free of units, so that the relief is the same at every size.
    slope = sigma * np.gradient(soft, axis=1) if width > 1 else np.zeros_like(soft)
    inside = np.asarray(body, np.float32) / 255
    return 1 - inside * (0.45 * (1 - soft) - 0.5 * camera.light * slope)


def _expose(
    picture: np.ndarray,
    relief: np.ndarray,
    camera: Camera,
    shot: Shot,
    rng: np.random.Generator,
) -> np.ndarray:
    """Takes the (H, W, 3) uint8 `picture` in the camera's light, with its noise."""
    rows = np.linspace(0.5, -0.5, len(picture), dtype=np.float32)[:, None]
    light = relief * (1 + shot.shade * rows)  # (H, W)
    gain = np.float32(camera.gain) * np.float32(shot.gain)  # (3,)
    exposed = picture / np.float32(255) * light[..., None] * gain
    exposed = exposed.clip(0, 1) ** np.float32(camera.gamma)
    exposed = camera.haze + (1 - camera.haze) * exposed
    noise = np.float32(camera.noise) * rng.standard_normal(exposed.shape, np.float32)
    return np.rint((exposed + noise).clip(0, 1) * 255).astype(np.uint8)
