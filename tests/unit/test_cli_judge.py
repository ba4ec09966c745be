"""`burnish judge`, in process, without any endpoint: replies come from a cache."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from burnish.cli import judge as judge_command
from burnish.cli import main
from burnish.core.judge import JudgeReply, JudgeRequest
from burnish.graders.judge_cache import CachedJudge, JudgeCache
from burnish.graders.rubric_file import load_rubric
from burnish.graders.rubric_labelled import judge_labelled, load_labelled
from burnish.integrations.openai_judge import OpenAIJudge
from burnish.testing.fakes import ScriptedJudge

RUBRIC = (
    'name = "r"\n[[criteria]]\nid = "short"\ntext = "It is short."\n[[criteria]]\nid = "kind"\ntext = "It is kind."\n'
)


class Standing(ScriptedJudge):
    """Speaks for an OpenAI judge, so that its replies are kept under that judge's version."""

    def __init__(self) -> None:
        super().__init__(lambda criterion, text: int(("kind" in text) if criterion.id == "kind" else len(text) < 20))
        real = OpenAIJudge("http://127.0.0.1", "m")
        self.name, self.version = real.name, real.version

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        return await super().judge(request)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "r.toml").write_text(RUBRIC)
    rows = [
        {"id": str(i), "answer": "kind words" + " more" * (i % 7), "labels": {"short": int(i % 7 < 2), "kind": i % 2}}
        for i in range(14)
    ]
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    rubric = load_rubric(tmp_path / "r.toml")
    judge = CachedJudge(Standing(), JudgeCache(tmp_path / "c.jsonl"))
    asyncio.run(judge_labelled(rubric, [judge], load_labelled(tmp_path / "l.jsonl", rubric), orders=2))
    return tmp_path


def calibrate(files: Path, *more: str) -> int:
    words = ["judge", "calibrate", str(files / "l.jsonl"), "--rubric", str(files / "r.toml"), "--judge", "openai:m"]
    return main([*words, "--offline", "--cache", str(files / "c.jsonl"), *more])


def test_a_judge_is_calibrated_offline(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(files, "--json", "--out", str(files / "out.json")) == 0
    data = json.loads(capsys.readouterr().out)
    criteria = data["judges"]["openai:m"]["criteria"]
    assert criteria["short"]["balanced_accuracy"] == 1.0
    assert criteria["kind"]["balanced_accuracy"] == 0.5
    assert data["spent"]["requests"] == 0
    assert data["judges"]["openai:m"]["position_bias"]["slope"] == 0.0
    assert json.loads((files / "out.json").read_text())["curves"] == {}
    assert calibrate(files) == 0
    printed = capsys.readouterr().out
    assert "balanced" in printed
    assert "14 examples; 0 requests" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_what_is_not_in_the_cache_is_missing_and_not_wrong(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(files, "--json", "--orders", "3") == 0
    found = json.loads(capsys.readouterr().out)["judges"]["openai:m"]
    assert found["missing"]["judge:not_in_cache"] > 0
    assert found["criteria"]["short"]["balanced_accuracy"] == 1.0


def test_raters_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ratings.jsonl"
    meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    rows = [
        {"unit": str(u), "rater": r, "value": v} for r, vs in (("meg", meg), ("owen", owen)) for u, v in enumerate(vs)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert main(["judge", "agreement", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["criteria"][""]
    assert found["alpha"] == pytest.approx(0.095, abs=5e-4)
    assert found["pairs"]["meg / owen"]["n"] == 10
    assert main(["judge", "agreement", str(path)]) == 0
    assert "Krippendorff" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agreement", "none.jsonl"], "cannot be read"),
        (["calibrate", "none.jsonl"], "--rubric"),
        (["calibrate", "{l}", "--rubric", "{r}"], "at least one judge"),
        (["calibrate", "{l}", "--rubric", "{r}", "--judge", "gpt"], "openai:MODEL"),
        (["calibrate", "{l}", "--rubric", "{r}", "--judge", "openai:m"], "--base-url"),
        (["calibrate", "{l}", "--rubric", "{r}", "--judge", "openai:m", "--offline"], "--cache"),
        (["calibrate", "{l}", "--rubric", "{r}", "--judge", "openai:m", "--out", "{r}"], "exists"),
    ],
)
def test_what_is_missing_is_said(
    words: list[str], message: str, files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    given = [word.format(l=files / "l.jsonl", r=files / "r.toml") for word in words]
    assert main(["judge", *given]) != 0
    ended = capsys.readouterr()
    assert message in " ".join((ended.out + ended.err).split())


class Moody(ScriptedJudge):
    """Finds nothing short any more once its mood has changed."""

    mood = 1

    def __init__(self) -> None:
        super().__init__(lambda criterion, text: Moody.mood * int("1" in text or criterion.id == "kind"), name="moody")


def test_a_judge_that_changed_is_a_finding(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_command, "open_judge", lambda name, arguments, ledger: Moody())
    monkeypatch.setattr(Moody, "mood", 1)
    words = ["judge", "drift", str(files / "l.jsonl"), "--rubric", str(files / "r.toml"), "--judge", "openai:m"]
    words += ["--baseline", str(files / "b.json")]
    assert main(words) == 0
    assert "two passes of moody-1 over 14 texts" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["finding"] is None
    assert same["drift"]["cells"] == 28
    monkeypatch.setattr(Moody, "mood", 0)
    assert main([*words, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["finding"]
    assert (found["kind"], found["monitor"], found["false_alarms_per_1000"]) == ("judge_drift", "judge/moody", 10.0)
    assert "no longer judges as it did" in found["summary"]
    assert main(words) == 1
    assert main([*words, "--offline"]) == 2
    assert "asks anew" in capsys.readouterr().err
