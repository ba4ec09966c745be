"""Made-up trajectories of a support agent, for timing: as long and as wordy as real ones, none of them real."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from burnish.diagnosis.record import Call, Item, Record, Reference

_THINGS = ("Kettle", "Lamp", "Chair", "Camera", "Bottle", "Jacket")
_STATES = ("pending", "delivered", "processed")


def records(n: int, messages: int = 30, seed: int = 0) -> Iterator[Record]:
    """`n` records of `messages` messages, half of them failed, each with a reference."""
    rng = random.Random(seed)
    for number in range(n):
        yield _record(number, messages, rng)


def _record(number: int, messages: int, rng: random.Random) -> Record:
    items = [Item(index=1, role="system", text="Help with orders. " * 200)]
    orders = [f"#W{rng.randrange(10**6, 10**7)}" for _ in range(4)]
    while len(items) < messages - 2:
        order = rng.choice(orders)
        at = len(items) + 1
        if rng.random() < 0.4:
            items.append(
                Item(index=at, role="user", text=f"Yes, please look at order {order} and return the {_thing(rng)}.")
            )
            text = (
                f"Order {order} is {rng.choice(_STATES)} and costs ${rng.randrange(900)}.50. Would you like to proceed?"
            )
            items.append(Item(index=at + 1, role="assistant", text=text))
            continue
        name = "get_order_details" if rng.random() < 0.7 else "cancel_pending_order"
        call = Call(id=f"c{at}", name=name, arguments={"order_id": order})
        items.append(Item(index=at, role="assistant", calls=(call,)))
        items.append(Item(index=at + 1, role="tool", text=_order(order, rng), call_id=f"c{at}", name=name))
    items.append(Item(index=len(items) + 1, role="user", text="That's all, thank you."))
    wanted = (Call(name="cancel_pending_order", arguments={"order_id": orders[0], "reason": "no longer needed"}),)
    return Record(
        id=str(number),
        items=tuple(items),
        reference=Reference(actions=wanted),
        passed=number % 2 == 0,
        source="made up",
    )


def _thing(rng: random.Random) -> str:
    return rng.choice(_THINGS).lower()


def _order(order: str, rng: random.Random) -> str:
    things = [
        {
            "name": rng.choice(_THINGS),
            "product_id": str(rng.randrange(10**9, 10**10)),
            "item_id": str(rng.randrange(10**9, 10**10)),
            "price": rng.randrange(10**4) / 100,
            "options": {"color": rng.choice(("red", "blue")), "size": rng.choice("SML"), "material": "steel"},
        }
        for _ in range(6)
    ]
    return json.dumps({"order_id": order, "status": rng.choice(_STATES), "items": things, "address": {"zip": "10001"}})
