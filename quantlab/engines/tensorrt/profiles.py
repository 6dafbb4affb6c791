"""Optimization profiles: the shapes that an engine takes, from ``--shapes`` and checked against the network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quantlab.documents import near_match
from quantlab.engines.record import Profile
from quantlab.errors import ConfigError

DEFAULT_LARGEST_BATCH = 32
"""Largest batch of the profile that is made where none is asked for."""

FORM = "NAME:1x3x224x224 for one shape, or NAME:MIN:OPT:MAX such as input:1x3x224x224:8x3x224x224:32x3x224x224"

Profiles = tuple[Mapping[str, Profile], ...]

_DIMS = r"([0-9]{1,9}(?:x[0-9]{1,9})*)"
_THREE = re.compile(rf"(.+):{_DIMS}:{_DIMS}:{_DIMS}", re.DOTALL)
_ONE = re.compile(rf"(.+):{_DIMS}", re.DOTALL)
_ENDS_IN_SHAPE = re.compile(r".*:[0-9]+(x[0-9]+)+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ShapeFlags:
    """What ``--shapes`` asked for.

    Attributes:
        imposed: Static shapes by input name.
        profiles: Ranges of shapes by input name, one mapping a profile; empty if none was asked for.
    """

    imposed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    profiles: Profiles = ()


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """An input as the network declares it.

    Attributes:
        name: Tensor name.
        shape: Sizes, batch first; None where any size may be given.
        values: Whether its contents are a shape (an input of sizes), so that a profile bounds the contents.
    """

    name: str
    shape: tuple[int | None, ...]
    values: bool = False

    def __str__(self) -> str:
        return "x".join("?" if size is None else str(size) for size in self.shape)


def parse_shape_flags(texts: Sequence[str]) -> ShapeFlags:
    """Parse ``--shapes``: ``NAME:DIMS`` imposes a shape, ``NAME:MIN:OPT:MAX`` is a range.

    Texts are read from the right, for names may hold colons. An input that is named k times with ranges makes k
    profiles; one that is named once has that range in all of them.

    Raises:
        ConfigError: If one is malformed, an input is given both forms or a static shape twice, or inputs have different
            numbers of ranges.
    """
    imposed: dict[str, tuple[int, ...]] = {}
    ranges: dict[str, list[Profile]] = {}
    for text in texts:
        if (three := _THREE.fullmatch(text)) is not None:
            name, *dims = three.groups()
            minimum, optimum, maximum = (_numbers(part) for part in dims)
            ranges.setdefault(name, []).append(Profile(minimum, optimum, maximum))
        elif (one := _ONE.fullmatch(text)) is not None and not _ENDS_IN_SHAPE.fullmatch(one.group(1)):
            name, sizes = one.group(1), _numbers(one.group(2))
            if min(sizes) < 1:
                raise ConfigError(f"--shapes {text!r} is malformed", expected=f"{FORM}; sizes of 1 or more")
            if name in imposed:
                raise ConfigError(f"--shapes names input {name!r} twice")
            imposed[name] = sizes
        else:
            raise ConfigError(f"--shapes {text!r} is malformed", expected=FORM)
    both = sorted(imposed.keys() & ranges.keys())
    if both:
        raise ConfigError(f"--shapes gives input {both[0]!r} one shape and a range", expected="one of the two")
    return ShapeFlags(imposed, _joined(ranges))


def _joined(ranges: Mapping[str, Sequence[Profile]]) -> Profiles:
    count = max((len(given) for given in ranges.values()), default=0)
    for name, given in ranges.items():
        if len(given) not in (1, count):
            raise ConfigError(
                f"--shapes gives input {name!r} {len(given)} ranges, and another input {count}",
                expected=f"one range for all profiles, or {count}",
            )
    return tuple({name: given[i % len(given)] for name, given in ranges.items()} for i in range(count))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x"))


def settle_profiles(inputs: Sequence[NetworkInput], asked: Profiles) -> tuple[Profiles, tuple[str, ...]]:
    """The profiles to build with, checked against the network's inputs; every input is in each of them.

    Where nothing is asked for and only batches are dynamic, one profile takes batches of 1 to `DEFAULT_LARGEST_BATCH`,
    with kernels chosen for 1.

    Returns:
        The profiles, and what was decided without being asked, in words.

    Raises:
        ConfigError: If a profile names an unknown input, lacks a dynamic one, or does not fit one; or if none is asked
            for and something other than the batch is dynamic.
    """
    known = {one.name: one for one in inputs}
    for profile in asked:
        for name in profile:
            if name not in known:
                near = near_match(name, known)
                raise ConfigError(
                    f"--shapes: the network has no input {name!r}",
                    expected="one of " + ", ".join(known),
                    hint=f"did you mean {near!r}?" if near else None,
                )
    if asked:
        return tuple({one.name: _settled(one, profile) for one in inputs} for profile in asked), ()
    chosen = {one.name: _default(one) for one in inputs}
    batches = [one.name for one in inputs if None in one.shape]
    largest = DEFAULT_LARGEST_BATCH
    note = f"no --shapes range was given: batches of 1 to {largest}, kernels chosen for 1 ({', '.join(batches)})"
    return (chosen,), (note,) if batches else ()


def _settled(one: NetworkInput, profile: Mapping[str, Profile]) -> Profile:
    given = profile.get(one.name)
    if given is None:
        if one.values or None in one.shape:
            raise ConfigError(
                f"--shapes gives no range for input {one.name!r}, whose {_what(one)} dynamic",
                expected="a range for every dynamic input",
                hint=f"add --shapes {one.name}:{_example(one)}",
            )
        size = tuple(size for size in one.shape if size is not None)
        return Profile(size, size, size)
    _check(one, given)
    return given


def _check(one: NetworkInput, given: Profile) -> None:
    parts = (("MIN", given.minimum), ("OPT", given.optimum), ("MAX", given.maximum))
    if one.values:
        count = one.shape[0] if one.shape else 1
        for label, values in parts:
            if count is not None and len(values) != count:
                raise ConfigError(
                    f"--shapes: {label} of input {one.name!r} has a wrong number of values, which are its contents",
                    got=_text(values), expected=f"{count} values",
                )  # fmt: skip
    else:
        for label, sizes in parts:
            fits = len(sizes) == len(one.shape) and all(
                size >= 1 and fixed in (None, size) for fixed, size in zip(one.shape, sizes, strict=True)
            )
            if not fits:
                raise ConfigError(
                    f"--shapes: {label} of input {one.name!r} does not fit the network", got=_text(sizes),
                    expected=f"{one} ({'any size for ?' if None in one.shape else 'no dimension of it is dynamic'})",
                )  # fmt: skip
    for axis, (low, best, high) in enumerate(zip(given.minimum, given.optimum, given.maximum, strict=True)):
        if not low <= best <= high:
            raise ConfigError(
                f"--shapes: the range of input {one.name!r} is out of order in dimension {axis}",
                got=f"{low}:{best}:{high}", expected="MIN <= OPT <= MAX",
            )  # fmt: skip


def _default(one: NetworkInput) -> Profile:
    if one.values or None in one.shape[1:]:
        raise ConfigError(
            f"input {one.name!r}: its {_what(one)} dynamic, and no range was given",
            got=str(one) if one.shape else "a single value",
            expected="a range for all that is dynamic but the batch",
            hint=f"add --shapes {one.name}:{_example(one)}",
        )
    rest = tuple(size for size in one.shape[1:] if size is not None)
    if one.shape and one.shape[0] is None:
        return Profile((1, *rest), (1, *rest), (DEFAULT_LARGEST_BATCH, *rest))
    size = tuple(size for size in one.shape if size is not None)
    return Profile(size, size, size)


def _what(one: NetworkInput) -> str:
    if one.values:
        return "contents, which are sizes, are"
    axes = [str(axis) for axis, size in enumerate(one.shape) if size is None]
    return f"dimension {axes[0]} is" if len(axes) == 1 else f"dimensions {', '.join(axes)} are"


def _example(one: NetworkInput) -> str:
    """A range to copy, in which letters stand for the sizes that only the user knows."""
    if one.values:
        return ":".join("x".join(["N"] * (one.shape[0] or 1 if one.shape else 1)) for _ in range(3))
    letters = "NCHWDEFGIJKLMOP"

    def text(batch: int) -> str:
        return "x".join(
            str(size) if size is not None else str(batch) if axis == 0 else letters[axis % len(letters)]
            for axis, size in enumerate(one.shape)
        )

    return ":".join(text(batch) for batch in (1, 8, 32))


def _text(values: Sequence[int]) -> str:
    return "x".join(map(str, values))


def fixed_batch(profiles: Profiles) -> int | None:
    """The one batch size that all inputs of all profiles have; None if it varies or differs."""
    found = {
        size
        for profile in profiles
        for one in profile.values()
        for size in (one.minimum[0] if one.minimum else 1, one.maximum[0] if one.maximum else 1)
    }
    return found.pop() if len(found) == 1 else None


def batch_within(profiles: Profiles, wanted: int) -> int:
    """The batch size nearest to ``wanted`` that the first profile takes."""
    first = profiles[0] if profiles else {}
    low = max((one.minimum[0] for one in first.values() if one.minimum), default=1)
    high = min((one.maximum[0] for one in first.values() if one.maximum), default=wanted)
    return max(low, min(wanted, high))
