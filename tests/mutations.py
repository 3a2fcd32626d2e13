"""Seeded damage to files, for test_hostile_files.py: bytes of any file, and values of a JSON."""

import copy
import json
import random

VALUES = (
    None, True, False, 0, -1, 1, 7, 1.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**30, "", "x",
    "1", "../../x", "/etc/passwd", "\0", "\ud800", "ä" * 300, [], {}, [[]], [None], {"a": 1}, [1, 2, 3], ["x"] * 3,
)  # fmt: skip


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, repeat or remove bytes."""
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        end = at + rng.choice((1, 2, 4, 16, 256))
        before, part, after = data[:at], data[at:end], data[end:]
        part = rng.choice((
            bytes(byte ^ 1 << rng.randrange(8) for byte in part[:1]) + part[1:],
            rng.randbytes(end - at),
            part * rng.choice((0, 2, 50)),
            rng.choice((b"\0", b"\xff", b"9", b"[")) * (end - at),
        ))  # fmt: skip
        data = before + part + (after if rng.random() < 0.95 else b"")
    return data


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or repeat values, or damage the bytes."""
    if rng.random() < 0.15:
        return damage_bytes(data, rng)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        value = _changed(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.02:
        text = "[" * 100_000 + text
    return text.encode("utf-8", "surrogatepass")


def _changed(value, rng: random.Random):
    places = list(_places(value))
    container, key = rng.choice(places) if places else (None, None)
    if container is None or rng.random() < 0.02:
        return rng.choice(VALUES)
    match rng.randrange(5):
        case 0:
            del container[key]
        case 1 if isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        case 2 if isinstance(container[key], int | float):
            container[key] = rng.choice((container[key] * 100, -container[key], container[key] + 0.5))
        case _:
            container[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def _places(value):
    """(container, key) of every value inside."""
    items = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, part in list(items):
        yield value, key
        yield from _places(part)
