"""The environment: one telephone call, one or two wishes, confirmation before every change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, ClassVar

from burnish.core.environment import Script
from burnish.core.errors import ConfigError, TaskError
from burnish.core.grade import Grade, Grader
from burnish.core.hashing import canonical_json, derive_seed
from burnish.core.message import Message, Role
from burnish.core.outcome import Ending
from burnish.core.task import Limits, Task
from burnish.core.tool import Tool
from burnish.core.trajectory import Trajectory
from burnish.environments.shop.database import added, in_order, updated
from burnish.environments.shop.mistakes import WRITES
from burnish.environments.shop.shop import Shop
from burnish.environments.shop.templates import cancelled
from burnish.environments.shop.world import CITIES, World, build_world, pick, pick_some
from burnish.environments.shop_dialogue.customer import Customer, Wish
from burnish.environments.shop_dialogue.expert import FEES, serve

INSTRUCTIONS = (
    "You serve the customers of a shop on the telephone. Rules: 1. Ask for the customer's number and name, and "
    "look the customer up before you do or tell anything else. 2. An order can only be changed for the customer "
    "who placed it. 3. Before every change say what exactly would be done, ask 'Shall I go ahead?', and wait for "
    "a yes. 4. A cancellation costs a fee: 5 for an open order, 12 for a packed one, 20 for a shipped one; a "
    "delivered order is not cancelled. 5. A refund is units times price; use the calculator. 6. After each wish "
    "ask whether there is anything else. When there is not, say goodbye."
)
TOOLS = (
    *("get_customer", "get_order", "get_lines", "get_product", "get_stock", "calculator"),
    *("cancel_order", "set_city", "create_refund"),
)
KINDS = ("cancel", "refund", "move", "stock")
MAX_WORLDS_TRIED = 1_000


class DialogueGrader:
    """Score 1.0 where exactly the right rows changed, each after a yes, the customer had been looked up first, and
    every number that was asked for was told; else 0.0, and no score for an episode that broke for another's reason."""

    name = "shop_dialogue"
    version = "1"

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        return self.judge(task, trajectory)

    def judge(self, task: Task, trajectory: Trajectory) -> Grade:
        """The same without waiting: a pure function of its arguments."""
        outcome = trajectory.outcome
        if not outcome.may_carry_reward:
            return self._grade(None, {}, cause=f"excluded:{outcome.label}")
        state = trajectory.final_state
        if outcome.ending is not Ending.COMPLETED:
            return self._grade(0.0, {"problem": "the episode did not complete", "outcome": outcome.label})
        if "changes" not in state:
            return self._grade(None, {}, cause="final_state_missing")
        # A turn that lists several numbers tells none of them.
        told = [set(re.findall(r"\d+", m.text)) for m in trajectory.messages if m.role is Role.ASSISTANT]
        untold = [text for text in task.reference["told"] if {text} not in told]
        checks = {
            "other rows changed": sorted(map(canonical_json, state["changes"]))
            == sorted(map(canonical_json, task.reference["changes"])),
            "a change without a yes": not state.get("unconfirmed"),
            "the customer was not looked up first": not state.get("unverified"),
            "something was not told": not untold,
        }
        problems = [name for name, holds in checks.items() if not holds]
        return self._grade(0.0 if problems else 1.0, {"problems": problems} if problems else {})

    def _grade(self, score: float | None, evidence: Mapping[str, Any], cause: str = "") -> Grade:
        return Grade(grader=self.name, version=self.version, score=score, cause=cause, evidence=evidence)


class ShopDialogue(Shop):
    """Telephone calls of customers: cancel an order, refund broken units, change a city, ask for a stock.

    Splits: "train" and "heldout" have different worlds.  The wishes stand in the task's setup, which no policy sees;
    they arrive turn by turn, each when the customer is asked whether there is anything else.  Options: sizes of the
    splits; wishes, at most that many in a call.
    """

    name: ClassVar[str] = "shop_dialogue"
    splits = ("train", "heldout")  # type: ignore[assignment]  # its templates are all seen: there is no third split
    graders: tuple[str | Grader, ...] = (DialogueGrader(),)
    mistakes: tuple[str, ...] = ("hasty", "unverified")

    def __init__(self, *, train: int = 1000, heldout: int = 200, wishes: int = 2) -> None:
        super().__init__(level=1)
        self.sizes = {"train": train, "heldout": heldout}
        if not 1 <= wishes <= len(KINDS) or min(self.sizes.values()) < 0:
            raise ConfigError(f"shop_dialogue: wishes is 1 to {len(KINDS)} and sizes 0 or more, got {wishes!r}")
        self.wishes = wishes
        self.limits = Limits(
            max_turns=12 * wishes + 8, max_turn_tokens=128, max_episode_tokens=2048, max_context_tokens=8192
        )

    def tasks(self, split: str, rng: Random) -> Iterator[Task]:
        """Calls, the kinds of their first wish in turn."""
        if split not in self.sizes:
            raise TaskError(f"shop_dialogue has no split {split!r}; it has {', '.join(self.sizes)}")
        for number in range(self.sizes[split]):
            yield self._call(KINDS[number % len(KINDS)], split, rng)

    def _call(self, first: str, split: str, rng: Random) -> Task:
        for _ in range(MAX_WORLDS_TRIED):
            seed = int(rng.random() * 2**48)
            if (derive_seed("shop_dialogue", seed) % 5 == 0) != (split == "heldout"):
                continue
            world = build_world(seed)
            rest = pick_some(rng, [kind for kind in KINDS if kind != first], len(KINDS) - 1)
            kinds = [first, *rest[: int(rng.random() * self.wishes)]]
            customer = pick(rng, list(world.customers))
            wishes = wishes_of(world, customer, kinds, rng)
            if wishes is not None:
                return self._made(world, seed, customer, wishes)
        raise TaskError(f"shop_dialogue: no world has a customer for a {first} in split {split}")

    def _made(self, world: World, seed: int, customer: int, wishes: Sequence[Wish]) -> Task:
        setup = {
            "seed": seed,
            "customer": customer,
            "wishes": [{"kind": wish.kind, "values": dict(wish.values)} for wish in wishes],
        }
        changes, told = outcome_of(world, customer, wishes)
        return Task(
            prompt=_customer(setup).opening(),
            system=INSTRUCTIONS,
            tools=TOOLS,
            setup=setup,
            reference={"changes": changes, "told": told},
            tags={
                "source": "shop_dialogue",
                "kind": "write" if changes else "read",
                "skill": wishes[0].kind,
                "template": "+".join(wish.kind for wish in wishes),
            },
        )

    def setup(self, task: Task) -> None:
        if not task.setup.get("wishes") or not isinstance(task.setup.get("customer"), int):
            raise TaskError(f"task {task.id}: shop_dialogue needs setup with seed, customer and wishes")
        super().setup(task)
        self.customer = _customer(task.setup)
        self.customer.opening()
        self._verified = False
        self._unconfirmed: list[str] = []
        self._unverified: list[str] = []

    def respond(self, text: str) -> str | None:
        """What the customer says to a turn."""
        return self.customer.hears(text)

    def tools(self) -> Sequence[Tool]:
        """The tools of the shop that a call needs, each of which notes what the rules are about."""
        return [self._noting(tool) for tool in super().tools()]

    def _noting(self, tool: Tool) -> Tool:
        async def call(arguments: Mapping[str, Any]) -> str:
            text = await tool.call(arguments)
            if tool.spec.name == "get_customer" and arguments.get("customer") == self.customer.key:
                self._verified = True
            elif not self._verified:
                self._unverified.append(tool.spec.name)
            if tool.spec.name in WRITES:
                self._unconfirmed += [] if self.customer.consents else [tool.spec.name]
                self.customer.consents = False
            return text

        return replace(tool, call=call)

    def final_state(self) -> dict[str, Any]:
        """The shop's changes, the writes that came without a yes (`unconfirmed`) and the calls that came too early
        (`unverified`)."""
        return super().final_state() | {"unconfirmed": self._unconfirmed, "unverified": self._unverified}

    def vocabulary(self) -> list[str | int]:
        """Every value of this episode's world that an argument may take."""
        world = build_world(self._seed)
        return [*world.products, *world.customers, *world.orders, *CITIES]

    def solve(self, mistake: str | None = None, rng: Random | None = None) -> Script:  # type: ignore[override]
        """The expert, or one that neither asks nor looks ("hasty"), or does not look up who calls ("unverified")."""
        script = serve(self.task.prompt_text)
        if mistake is None:
            return (yield from script)
        return (yield from _careless(script, mistake, self.customer.name))


def wishes_of(world: World, customer: int, kinds: Sequence[str], rng: Random) -> list[Wish] | None:
    """A wish of each kind on different orders of a customer; None where he has none for one of them."""
    orders = [key for key, order in world.orders.items() if order.customer == customer]
    wishes: list[Wish] = []
    for kind in kinds:
        if kind == "move":
            others = [city for city in CITIES if city != world.customers[customer].city]
            wishes.append(Wish(kind=kind, values={"city": pick(rng, others)}))
        elif kind == "stock":
            wishes.append(Wish(kind=kind, values={"product": pick(rng, list(world.products))}))
        else:
            fit = [key for key in orders if kind == "refund" or world.orders[key].status in FEES]
            if not fit:
                return None
            order = pick(rng, fit)
            orders.remove(order)
            values: dict[str, Any] = {"order": order}
            if kind == "refund":
                product, bought = pick(rng, list(world.orders[order].lines.items()))
                values = {"units": pick(rng, range(2, bought + 1)), "product": product, "order": order}
            wishes.append(Wish(kind=kind, values=values))
    return wishes


def outcome_of(world: World, customer: int, wishes: Sequence[Wish]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """(rows that must change, numbers that must be told)."""
    changes: list[Mapping[str, Any]] = []
    told: list[str] = []
    for wish in wishes:
        values = wish.values
        if wish.kind == "move":
            before = {"city": world.customers[customer].city}
            changes.append(updated("customers", customer, before, {"city": values["city"]}))
        elif wish.kind == "cancel":
            changes.append(cancelled(world, values["order"], FEES[world.orders[values["order"]].status]))
        elif wish.kind == "refund":
            amount = values["units"] * world.products[values["product"]].price
            changes.append(added("refunds", {"order_id": values["order"], "amount": amount}))
        else:
            told.append(str(world.products[values["product"]].units))
    return in_order(changes), told


def _customer(setup: Mapping[str, Any]) -> Customer:
    name = build_world(setup["seed"]).customers[setup["customer"]].name
    wishes = [Wish(kind=wish["kind"], values=wish["values"]) for wish in setup["wishes"]]
    rng = Random(derive_seed("shop_dialogue", setup["seed"], setup["customer"]))
    return Customer(key=setup["customer"], name=name, wishes=wishes, rng=rng)


def _careless(script: Any, mistake: str, name: str) -> Script:
    """The expert without one of its steps; the script is told what it wants to hear."""
    heard: Any = None
    while True:
        try:
            said = script.send(heard)
        except StopIteration as end:
            return str(end.value)
        if mistake == "hasty" and isinstance(said, Message) and "Shall I go ahead?" in said.text:
            heard = ["Yes."]
        elif mistake == "hasty" and not isinstance(said, Message) and said.name == "get_stock":
            heard = canonical_json({"units": 0})
        elif mistake == "unverified" and not isinstance(said, Message) and said.name == "get_customer":
            heard = canonical_json({"name": name})
        else:
            heard = yield said
