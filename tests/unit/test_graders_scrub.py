"""What leaves is free of secrets and personal data that have a form; innocent text stays as it is."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.graders.scrub import Scrubber, is_card, is_iban

A40 = "aB3" * 14
SENSITIVE: list[tuple[str, str, str]] = [
    ("SECRET", "key sk-proj-" + A40, A40),
    ("SECRET", "sk-ant-api03-" + A40 + " is mine", A40),
    ("SECRET", "ghp_" + "a1B2" * 9, "a1B2a1B2"),
    ("SECRET", "github_pat_" + "a1B2_" * 10, "a1B2_a1B2"),
    ("SECRET", "glpat-" + "x9Y8z7W6v5U4t3S2r1Q0", "x9Y8"),
    ("SECRET", "xoxb-123456789012-abcdefABCDEF", "123456789012"),
    ("SECRET", "AKIAIOSFODNN7EXAMPLE", "IOSFODNN7"),
    ("SECRET", "AIza" + "Sy0123456789" * 2 + "abcdefghijk", "Sy0123"),
    ("SECRET", "hf_" + "aBcDeFgHiJ" * 4, "aBcDeFgHiJ"),
    ("SECRET", "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc", "4eC39"),
    ("SECRET", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4fw", "SflKxw"),
    ("SECRET", "Authorization: Bearer abcdef0123456789abcdef", "abcdef0123456789"),
    ("SECRET", "password = 'hunter2hunter2'", "hunter2"),
    ("SECRET", "export DB_PASSWORD=s3cretV4lue99", "s3cret"),
    ("SECRET", '{"api_key": "0f1e2d3c4b5a6978"}', "0f1e2d3c"),
    ("SECRET", "postgres://admin:p4ssw0rd@db.example.org/x", "p4ssw0rd"),
    ("SECRET", "-----BEGIN RSA PRIVATE KEY-----\nMIIEow" + "Ab9/" * 40 + "\n-----END RSA PRIVATE KEY-----", "MIIEow"),
    ("SECRET", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk" + "Ab9/" * 40, "b3BlbnNz"),
    ("EMAIL", "ann.o-hara+x@mail.example.co.uk", "ann"),
    ("EMAIL", "<bob@example.org>.", "bob"),
    ("PHONE", "+49 30 1234 5678", "1234"),
    ("PHONE", "call +1 (415) 555-2671 now", "415"),
    ("PHONE", "(415) 555-2671", "415"),
    ("PHONE", "415-555-2671", "2671"),
    ("PHONE", "+442079460958", "2079"),
    ("PHONE", "0171 2345678", "2345"),
    ("CARD", "4111 1111 1111 1111", "4111"),
    ("CARD", "5500-0000-0000-0004", "5500"),
    ("CARD", "card 378282246310005.", "378282"),
    ("IBAN", "DE89 3704 0044 0532 0130 00", "3704"),
    ("IBAN", "GB82WEST12345698765432", "WEST"),
    ("IP", "from 203.0.113.42 port 22", "203.0"),
    ("IP", "2001:db8:85a3::8a2e:370:7334", "85a3"),
]


@pytest.mark.parametrize(("kind", "text", "secret"), SENSITIVE, ids=range(len(SENSITIVE)))
def test_sensitive_passages_are_taken_out(kind: str, text: str, secret: str) -> None:
    scrubber = Scrubber()
    clean = scrubber.scrub(text)
    assert secret not in clean
    assert f"[{kind}_1]" in clean
    assert scrubber.counts[kind] == 1
    assert sum(scrubber.counts.values()) == 1


INNOCENT = [
    "See section 4.2.1.3 and version 1.2.3.4 of the standard, § 10.1.2.3, v2.0.0.1.",
    "Smith v. Jones, 410 U.S. 113, 153 (1973); 42 U.S.C. § 1983; N.Y. U.C.C. 2-207(2)(b).",
    "In 2019-2020 revenue rose 12.5% to $1,234,567.89, then 1 000 000 in 2021.",
    "The order 1234567890123456 shipped on 2024-03-01 12:30:45.",
    "pi = 3.14159265358979323846, 6.02214076e23, 0.1234567890123456",
    "uuid 123e4567-e89b-12d3-a456-426614174000 and sha 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
    "def token(self): password = getpass(); api_key = os.environ['API_KEY']",
    "Set your password: it must have at least eight characters.",
    "password: required, token: optional, secret = None",
    "The secret: patience. Access token: see the settings page.",
    "a@b, @decorator, user@localhost, x = y @ z, 3 @ 4.00",
    "std::vector<int>, a::b::c, 12:30:45, ::, Foo::Bar::baz, http://127.0.0.1:8000/v1, 0.0.0.0",
    "ISBN 978-3-16-148410-0, ISBN 0-306-40615-2, DOI 10.1000/182, arXiv 2505.08775",
    "Tasks task-001-part-2, desk-lamp-sk-1, risk-averse-strategies-in-long-horizons",
    "The ratio 1-2-3-4-5-6-7-8-9 and 555-1234 and extension 42; call 911.",
    "Rows 100 200 300 400, 2020 2021 2022 2023 2024 2025",
    "Coordinates (51.5074, -0.1278), 40.7128 N; 192 x 168; 1.5.2",
    "DE89 is the prefix, and GB00 TEST is no account. ABCD12 EFGH 3456",
    "matrix [[1, 2, 3], [4, 5, 6]] at 0x7ffee4b2; 0000000000000000",
    "He scored 99.9, at 1.2.3.4.5 depth and 300.1.2.3",
    "[EMAIL_1] wrote to [SECRET_2], token=[SECRET_1], password: [SECRET_3]",
]


@pytest.mark.parametrize("text", INNOCENT, ids=range(len(INNOCENT)))
def test_innocent_text_stays(text: str) -> None:
    assert Scrubber().scrub(text) == text


def test_no_innocent_word_of_the_projects_own_documents_is_taken() -> None:
    """A larger body of technical prose; what is taken there must be an address of a machine."""
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    scrubber = Scrubber()
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        scrubber.scrub(path.read_text(encoding="utf-8"))
    assert sum(scrubber.counts.values()) == scrubber.counts["IP"] <= 3


def test_placeholders_are_stable_over_the_texts_of_one_scrubber() -> None:
    scrubber = Scrubber()
    first = scrubber.scrub("ann@example.org 4111111111111111")
    assert scrubber.scrub("bob@example.org ann@example.org 4111-1111-1111-1111") == "[EMAIL_2] [EMAIL_1] [CARD_1]"
    assert first == "[EMAIL_1] [CARD_1]"
    assert Scrubber().scrub("bob@example.org") == "[EMAIL_1]"


def test_json_is_scrubbed_through_and_through() -> None:
    value = {"to": ["ann@example.org", 5, None, True], "ann@example.org": {"n": 1.5}}
    assert Scrubber().scrub_json(value) == {"to": ["[EMAIL_1]", 5, None, True], "[EMAIL_1]": {"n": 1.5}}


passages = st.sampled_from([text for _, text, _ in SENSITIVE]) | st.sampled_from(INNOCENT) | st.text(max_size=20)


@given(st.lists(passages, max_size=6).map(" ".join))
def test_scrubbing_again_changes_nothing(text: str) -> None:
    once = Scrubber().scrub(text)
    assert Scrubber().scrub(once) == once


@given(st.text())
def test_any_text_is_scrubbed(text: str) -> None:
    Scrubber().scrub(text)


@given(st.integers(10**12, 10**18 - 1))
def test_one_wrong_digit_is_no_card(number: int) -> None:
    text = str(number)
    check = next(digit for digit in "0123456789" if is_card(text + digit) or len(set(text + digit)) == 1)
    wrong = str((int(check) + 1) % 10)
    assert not is_card(text + wrong)


def test_check_digits_of_accounts() -> None:
    # Examples of the IBAN registry.
    good = ["FR1420041010050500013M02606", "NO9386011117947", "CH9300762011623852957", "NL91ABNA0417164300"]
    assert all(is_iban(text) for text in good)
    assert not any(is_iban(text[:-1] + ("0" if text[-1] != "0" else "1")) for text in good)
    assert not is_iban("XX9386011117947")


HOSTILE = ["a" * 200_000, "1-" * 100_000, "(555) " * 30_000, "+1 " * 60_000, "a@" * 100_000, "a." * 100_000]
HOSTILE += [":" * 200_000, "1.1." * 50_000, "token=" * 30_000, "eyJ" * 60_000, "sk-" * 60_000, "://a:" * 40_000]
HOSTILE += ["-----BEGIN PRIVATE KEY-----" * 7_000, "api_" * 50_000, "GB82 " * 40_000, "Bearer " * 30_000]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_makes_it_slow(text: str) -> None:
    started_s = time.perf_counter()
    Scrubber().scrub(text)
    assert time.perf_counter() - started_s < 3.0
