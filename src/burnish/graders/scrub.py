"""Secrets and personal data out of a text before it leaves: to a judge, or in an export.

What is found by its form alone, and only where the form says enough: card numbers by the Luhn check, bank accounts by
ISO 7064 mod 97-10, tokens by their issuers' prefixes.  Names and addresses of people have no form, so they stay.  Every
pattern has bounded repetition, so that no text makes it slow.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any


class Sensitive(StrEnum):
    """Kinds of what is taken out."""

    SECRET = "SECRET"
    EMAIL = "EMAIL"
    IBAN = "IBAN"
    CARD = "CARD"
    PHONE = "PHONE"
    IP = "IP"


_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----(?:[A-Za-z0-9+/=\s:,]|-(?!-)){0,8000}"
    r"(?:-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----)?"
)
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"sk-(?:proj-|ant-|or-|live-)?[A-Za-z0-9_-]{20,200}"
    r"|(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{16,100}"
    r"|gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{30,255}|glpat-[A-Za-z0-9_-]{20,100}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,200}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,500}"
    r"|hf_[A-Za-z0-9]{30,60}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,300}|SG\.[A-Za-z0-9_-]{20,30}\.[A-Za-z0-9_-]{40,50}"
    r"|eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,1000}"
    r")(?![A-Za-z0-9])"
)
_BEARER = re.compile(r"(?<=\bBearer )[A-Za-z0-9._~+/-]{16,2000}={0,2}")
_LOGIN = re.compile(r"(?<=://)[^\s/@:]{1,100}:[^\s/@]{1,200}(?=@)")
_ASSIGNED = re.compile(
    r"(?i)\b(?:[a-z0-9]{1,30}[_-]){0,4}(?:api[_-]?key|secret(?:[_-]?(?:access[_-]?)?key)?|access[_-]?token|auth[_-]?token"
    r"|password|passwd|pwd|token)[\"']?\s{0,3}(?:=|:)\s{0,3}[\"']?([^\s\"',;]{8,300})"
)
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_CARD = re.compile(r"(?<![0-9A-Za-z.,-])[2-6][0-9]{3}(?:[ -]?[0-9]){9,15}(?![0-9A-Za-z]|[.,][0-9])")
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"\+[1-9][0-9]{0,2}(?:[ .-]?\(?0?\)?)?(?:[ .-]?\(?[0-9]{1,4}\)?){2,6}"
    r"|\([2-9][0-9]{2}\)[ .-]?[2-9][0-9]{2}[ .-][0-9]{4}"
    r"|(?:1[ .-])?[2-9][0-9]{2}([.-])[2-9][0-9]{2}\1[0-9]{4}"
    r"|0[1-9][0-9]{1,4}[ /-][0-9]{2,4}[ -]?[0-9]{2,4}(?:[ -]?[0-9]{2,4})?"
    r")(?![\w/-]|\.[0-9])"
)
_IPV4 = re.compile(r"(?<![\w.-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w-]|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.[0-9])")
_NUMBERED = re.compile(
    r"(?i)(?:\b(?:v|ver|version|release|section|sec|clause|paragraph|para|chapter|article|rule|oid|build)s?[.:]?|§+)\s{0,2}\Z"
)
_IBAN_CHARS = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20,
    "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27,
    "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24,
    "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TR": 26, "UA": 29,
}  # fmt: skip
"""Lengths by country, from the IBAN registry of SWIFT."""


class Scrubber:
    """Takes sensitive passages out; equal ones get equal placeholders in all texts of one scrubber.

    >>> Scrubber().scrub("Write to ann@example.org or bob@example.org, not ann@example.org.")
    'Write to [EMAIL_1] or [EMAIL_2], not [EMAIL_1].'

    `counts` says how many passages of each kind were taken out.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._names: dict[tuple[Sensitive, str], str] = {}

    def scrub(self, text: str) -> str:
        """The text with placeholders; scrubbing it again changes nothing."""
        text = self._replace(Sensitive.SECRET, _PRIVATE_KEY, text)
        for pattern in (_LOGIN, _TOKEN, _BEARER):
            text = self._replace(Sensitive.SECRET, pattern, text)
        text = _ASSIGNED.sub(self._assigned, text)
        text = self._replace(Sensitive.EMAIL, _EMAIL, text)
        text = self._replace(Sensitive.IBAN, _IBAN, text, is_iban)
        text = self._replace(Sensitive.CARD, _CARD, text, is_card)
        # addresses before numbers: the first group of an address would look like the end of a number before it
        text = _IPV4.sub(lambda match: self._address(match), text)
        text = _IPV6.sub(lambda match: self._address(match), text)
        return self._replace(Sensitive.PHONE, _PHONE, text, _is_phone)

    def scrub_json(self, value: Any) -> Any:
        """Every text in a JSON-able value scrubbed, keys included; numbers stay as they are."""
        if isinstance(value, str):
            return self.scrub(value)
        if isinstance(value, Mapping):
            return {self.scrub(str(key)): self.scrub_json(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.scrub_json(item) for item in value]
        return value

    def _replace(
        self, kind: Sensitive, pattern: re.Pattern[str], text: str, check: Callable[[str], bool] | None = None
    ) -> str:
        return pattern.sub(
            lambda match: self._name(kind, match[0]) if check is None or check(match[0]) else match[0], text
        )

    def _assigned(self, match: re.Match[str]) -> str:
        value = match[1]
        whole = match[0]
        if value.startswith(("[SECRET_", "[EMAIL_", "[CARD_", "[IBAN_", "$", "<", "{", "*", "...")) or not _mixed(
            value
        ):
            return whole
        return whole[: len(whole) - len(value)] + self._name(Sensitive.SECRET, value)

    def _address(self, match: re.Match[str]) -> str:
        before = match.string[max(0, match.start() - 20) : match.start()]
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            return match[0]
        if address.is_loopback or address.is_unspecified or _NUMBERED.search(before):
            return match[0]
        return self._name(Sensitive.IP, match[0])

    def _name(self, kind: Sensitive, passage: str) -> str:
        key = (kind, re.sub(r"[\s-]", "", passage) if kind in (Sensitive.CARD, Sensitive.IBAN) else passage)
        if key not in self._names:
            taken = sum(other is kind for other, _ in self._names)
            self._names[key] = f"[{kind.value}_{taken + 1}]"
        self.counts[kind.value] += 1
        return self._names[key]


def _mixed(value: str) -> bool:
    """Whether a value looks drawn, not written: letters with digits or signs, and no call or path."""
    if any(char in value for char in "()[]{}<>"):
        return False
    return any(char.isdigit() for char in value) and any(char.isalpha() for char in value) and "/" not in value[:2]


def is_card(text: str) -> bool:
    """Whether 13 to 19 digits, spaces and hyphens left out, pass the check of Luhn (ISO/IEC 7812-1, annex B).

    >>> is_card("4111 1111 1111 1111"), is_card("4111 1111 1111 1112")
    (True, False)
    """
    digits = [int(char) for char in text if char.isdecimal()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the length is that of the country and the check digits hold (ISO 13616, mod 97-10).

    >>> is_iban("GB82 WEST 1234 5698 7654 32"), is_iban("GB82 WEST 1234 5698 7654 33")
    (True, False)
    """
    plain = text.replace(" ", "")
    if len(plain) != _IBAN_CHARS.get(plain[:2]):
        return False
    return int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1


def _is_phone(text: str) -> bool:
    return 8 <= sum(char.isdecimal() for char in text) <= 15
