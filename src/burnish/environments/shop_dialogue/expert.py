"""The expert on the telephone: works from what it hears and from tool results alone."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping
from typing import Any

from burnish.core.message import Message, ToolCall
from burnish.environments.shop.world import CITIES, PRODUCTS

FEES: Mapping[str, int] = {"open": 5, "packed": 12, "shipped": 20}
"""What the customer is charged for a cancellation, by the status of the order."""

Said = ToolCall | Message
Steps = Generator[Said, Any, str]
_LEAVES = re.compile(r"\bthat(?:'s| is) all\b", re.I)
_KINDS = (("refund", r"refund|money back"), ("cancel", r"cancel"), ("stock", r"stock"), ("move", r"city|moved?\b"))
MAX_PROPOSALS = 4


class ToolFailed(Exception):
    """A tool gave no usable answer; the expert says so and goes on."""


def say(text: str) -> Generator[Said, Any, str]:
    """Say something and hear the customer's answer."""
    heard = yield Message.assistant(text)
    return "\n".join(heard) if isinstance(heard, list) else str(heard or "")


def look(name: str, **arguments: Any) -> Generator[Said, Any, Any]:
    """Call a tool and read its JSON result.  Raises ToolFailed where it is none."""
    text = yield ToolCall(id="call_0", name=name, arguments=arguments)
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        raise ToolFailed(str(text)) from None


def values_in(text: str) -> dict[str, Any]:
    """What a customer's words name.

    >>> values_in("I would like a refund for 2 units of lamp in order 17.")
    {'order': 17, 'units': 2, 'product': 'lamp'}
    """
    found: dict[str, Any] = {}
    for name, pattern in (("order", r"\border (\d+)"), ("units", r"(\d+) units"), ("customer", r"\bcustomer (\d+)")):
        if match := re.findall(pattern, text, re.I):
            found[name] = int(match[-1])
    for name, words in (("product", PRODUCTS), ("city", CITIES)):
        if seen := [word for word in re.findall(r"\w+", text) if word in words]:
            found[name] = seen[-1]
    return found


def kind_of(text: str) -> str:
    """The kind of wish that words express, "" for none."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, text, re.I)), "")


def serve(opening: str) -> Steps:
    """A whole call: who is it, then one wish after the other."""
    heard = yield from say("Gladly. May I have your customer number and your name first?")
    customer = values_in(heard).get("customer", 0)
    kind, values = "", dict[str, Any]()
    try:
        found = yield from look("get_customer", customer=customer)
        known = str(found.get("name")) in heard
    except ToolFailed:
        known = False
    if not known:
        yield from say("I am sorry, I cannot find you under that number and name. Is there anything else?")
        return "Goodbye."
    request = opening
    while True:
        kind, values = kind_of(request) or kind, values | values_in(request)
        try:
            done = yield from WISHES.get(kind, _not_understood)(customer, values)
        except ToolFailed:
            done = "I am sorry, our system cannot do that now."
        request = yield from say(f"{done} Is there anything else?")
        if _LEAVES.search(request):
            return "Thank you for calling. Goodbye."


def _agreed(proposal: str, values: dict[str, Any]) -> Generator[Said, Any, str]:
    """Ask whether to go ahead: "yes", "no", or "other" where the answer names other values, which are then in
    `values`."""
    heard = yield from say(f"{proposal} Shall I go ahead?")
    now = values_in(heard)
    if any(values.get(name) != value for name, value in now.items()):
        values.update(now)
        return "other"
    return "no" if re.match(r"\s*no\b", heard, re.I) else "yes"


def _move(customer: int, values: dict[str, Any]) -> Generator[Said, Any, str]:
    for _ in range(MAX_PROPOSALS):
        agreed = yield from _agreed(f"I would set the city of customer {customer} to {values['city']}.", values)
        if agreed == "yes":
            yield ToolCall(id="call_0", name="set_city", arguments={"customer": customer, "city": values["city"]})
            return f"The city is now {values['city']}."
        if agreed == "no":
            break
    return "Then I leave it as it is."


def _cancel(customer: int, values: dict[str, Any]) -> Generator[Said, Any, str]:
    for _ in range(MAX_PROPOSALS):
        order = values["order"]
        found = yield from look("get_order", order=order)
        if found.get("customer") != customer or found.get("status") not in FEES:
            return f"I am sorry, order {order} cannot be cancelled."
        fee = FEES[found["status"]]
        agreed = yield from _agreed(f"I would cancel order {order} for a fee of {fee}.", values)
        if agreed == "yes":
            yield ToolCall(id="call_0", name="cancel_order", arguments={"order": order, "fee": fee})
            return f"Order {order} is cancelled."
        if agreed == "no":
            break
    return "Then I leave it as it is."


def _refund(customer: int, values: dict[str, Any]) -> Generator[Said, Any, str]:
    for _ in range(MAX_PROPOSALS):
        order, product, units = values["order"], values["product"], values["units"]
        found = yield from look("get_order", order=order)
        lines = yield from look("get_lines", order=order)
        if found.get("customer") != customer or product not in [line["product"] for line in lines]:
            return f"I am sorry, I cannot refund that for order {order}."
        price = (yield from look("get_product", product=product))["price"]
        amount = yield from look("calculator", expression=f"{units}*{price}")
        proposal = f"I would refund {amount} for {units} units of {product} in order {order}."
        agreed = yield from _agreed(proposal, values)
        if agreed == "yes":
            yield ToolCall(id="call_0", name="create_refund", arguments={"order": order, "amount": amount})
            return f"The refund of {amount} is on its way."
        if agreed == "no":
            break
    return "Then I leave it as it is."


def _stock(customer: int, values: dict[str, Any]) -> Generator[Said, Any, str]:
    found = yield from look("get_stock", product=values["product"])
    return f"We have {found['units']} units of {values['product']} in stock."


def _not_understood(customer: int, values: dict[str, Any]) -> Generator[Said, Any, str]:
    return "I am sorry, I do not understand that."
    yield  # A generator without a single yield.


WISHES = {"move": _move, "cancel": _cancel, "refund": _refund, "stock": _stock}
