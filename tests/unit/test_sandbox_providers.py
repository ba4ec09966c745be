"""Configured providers: Docker's command line and the HTTP protocol, each against a fake."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import tarfile
import time
from pathlib import Path

import httpx
import pytest

from burnish.core.sandbox import KilledFor, Rung, SandboxError, SandboxLimits, SandboxResult
from burnish.sandbox.docker import DockerSandbox, DockerSpec, packed, unpacked
from burnish.sandbox.folder import folder_files
from burnish.sandbox.remote import RemoteSandbox, RemoteSpec, answer_json

FAKE = Path(__file__).parents[1] / "support" / "fake_docker.py"
LIMITS = SandboxLimits(wall_s=10.0, output_bytes=1000)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_DOCKER", str(tmp_path))
    return tmp_path


def docker(command, *, image="an-image", limits=LIMITS, **more):
    sandbox = DockerSandbox(DockerSpec(image=image, client=str(FAKE)))
    return asyncio.run(sandbox.run(command, limits=limits, **more))


class TestDocker:
    def test_a_run_fills_starts_reads_and_removes_a_container(self, home):
        program = (
            "import sys; print(open('a/b.txt').read(), sys.stdin.read()); open('out.txt', 'w').write('x'); sys.exit(3)"
        )
        result = docker(["python", "-c", program], files={"a/b.txt": b"bee"}, stdin=b"in", collect=["*.txt"])
        assert (result.exit, result.stdout, result.rung) == (3, b"bee in\n", Rung.DOCKER)
        assert dict(result.files_out) == {"a/b.txt": b"bee", "out.txt": b"x"}
        assert result.provider.endswith(":an-image")
        verbs = [json.loads(line)[0] for line in (home / "calls").read_text().splitlines()]
        assert verbs == ["create", "cp", "start", "cp", "rm"]
        assert [path.name for path in home.iterdir()] == ["calls"]

    def test_the_container_is_made_with_every_limit(self):
        limits = SandboxLimits(memory_bytes=2**28, processes=7, disk_bytes=2**24, cpu_s=3.0)
        spec = DockerSpec(image="an-image", runtime="runsc", disk_option=True)
        words = DockerSandbox(spec).create_words("n", ["python", "x.py"], limits, {"A": "b"})
        text = " ".join(words)
        for part in (
            "--network none", "--cap-drop ALL", "--security-opt no-new-privileges", "--user 65534:65534",
            "--memory 268435456 --memory-swap 268435456", "--pids-limit 7", "--ulimit cpu=3", "--pull never",
            "--ulimit fsize=16777216", "--storage-opt size=16777216", "--runtime runsc", "--env A=b",
        ):  # fmt: skip
            assert part in text
        assert words[-4:] == ["--entrypoint", "python3", "an-image", "x.py"]

    def test_time_and_output_are_watched(self, home):
        slow = docker(["python", "-c", "import time; time.sleep(20)"], limits=SandboxLimits(wall_s=0.5))
        assert (slow.killed_for, slow.exit) == (KilledFor.WALL, None)
        loud = docker(["python", "-c", "while True: print('x' * 100)"])
        assert (loud.killed_for, len(loud.stdout)) == (KilledFor.OUTPUT, 1000)
        assert [path.name for path in home.iterdir()] == ["calls"]

    def test_the_daemon_says_what_ran_out_of_memory(self, home):
        program = "import os; open('oom', 'w'); os.kill(os.getpid(), 9)"
        assert docker(["python", "-c", program]).killed_for is KilledFor.MEMORY
        assert docker(["python", "-c", program.replace("oom", "x")]).exit == 137

    def test_a_client_that_fails_is_an_infrastructure_error(self, home):
        with pytest.raises(SandboxError, match="No such image"):
            docker(["true"], image="another")
        with pytest.raises(SandboxError, match="cannot be run"):
            asyncio.run(DockerSandbox(DockerSpec(image="x", client="/no/such")).run(["true"]))

    def test_links_in_its_archive_are_not_read(self, home):
        program = "import os; os.symlink('/etc/passwd', 'l'); open('a', 'w'); os.link('a', 'h'); os.mkfifo('f')"
        result = docker(["python", "-c", program], collect=["*"])
        assert set(result.files_out) <= {"a", "h"}
        assert len(result.files_out) == 1
        assert result.skipped["l"] == "symlink"
        assert result.skipped["f"] == "not a regular file"

    def test_archives_are_packed_below_the_work_folder_and_held_to_limits(self):
        with pytest.raises(SandboxError, match="relative path"):
            packed({"../x": b""})
        with tarfile.open(fileobj=io.BytesIO(packed({"a/b": b"#!x", "c": b"y"}))) as archive:
            assert archive.getnames() == ["sandbox", "sandbox/a", "sandbox/a/b", "sandbox/c"]
        found, skipped = unpacked(packed({"a": b"123", "b": b"45"}), ["*"], SandboxLimits(collect_bytes=4))
        assert (found, skipped) == ({"a": b"123"}, {"b": "size"})


def remote(handler, *, command=("python", "-c", "1"), **more):
    async def main():
        spec = RemoteSpec(name="lab", url="http://lab.test", headers={"authorization": "k"}, first_wait_s=0.01)
        sandbox = RemoteSandbox(spec, transport=httpx.MockTransport(handler))
        try:
            return await sandbox.run(command, limits=LIMITS, **more)
        finally:
            await sandbox.close()

    return asyncio.run(main())


def answering(**changes):
    result = SandboxResult(exit=0, stdout=b"42\n", stderr=b"", rung=Rung.BWRAP, wall_s=0.1, files_out={"a": b"x"})
    return {**answer_json(result), **changes}


class TestRemote:
    def test_a_run_there_and_back(self):
        seen = {}

        def handler(request):
            seen.update(json.loads(request.content), key=request.headers["authorization"])
            return httpx.Response(200, json=answering())

        result = remote(handler, files={"f": b"in"}, stdin=b"s", env={"A": "b"}, collect=["*"])
        assert (result.exit, result.stdout, result.rung) == (0, b"42\n", Rung.REMOTE)
        assert (result.provider, dict(result.files_out)) == ("lab:bwrap", {"a": b"x"})
        assert base64.b64decode(seen["files"]["f"]) == b"in"
        assert (seen["env"], seen["limits"]["wall_s"], seen["key"]) == ({"A": "b"}, 10.0, "k")

    def test_refusals_for_the_time_being_are_asked_again(self):
        answers = [httpx.Response(503), httpx.Response(429), httpx.Response(200, json=answering())]
        assert remote(lambda request: answers.pop(0)).exit == 0

    def test_a_run_that_may_have_begun_is_not_sent_again(self):
        calls = []

        def handler(request):
            calls.append(1)
            raise httpx.ReadTimeout("slow")

        with pytest.raises(SandboxError, match="did not answer"):
            remote(handler)
        assert len(calls) == 1

    @pytest.mark.parametrize(
        "changes",
        [
            {"exit": "x"},
            {"stdout": "%"},
            {"wall_s": float("inf")},
            {"killed_for": "?"},
            {"files": [1]},
            {"files": {"../x": ""}},
        ],
    )
    def test_garbage_is_an_infrastructure_error(self, changes):
        with pytest.raises(SandboxError):
            remote(lambda request: httpx.Response(200, text=json.dumps(answering(**changes))))

    def test_statuses_and_texts_that_are_no_answer(self):
        with pytest.raises(SandboxError, match="status 404"):
            remote(lambda request: httpx.Response(404))
        with pytest.raises(SandboxError, match="no JSON"):
            remote(lambda request: httpx.Response(200, text="<html>"))

    def test_what_comes_back_is_held_to_the_limits(self):
        big = base64.b64encode(b"x" * 5000).decode()
        assert len(remote(lambda request: httpx.Response(200, json=answering(stdout=big))).stdout) == 1000


def test_folder_files_takes_regular_files_and_no_links(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_bytes(b"x")
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert folder_files(tmp_path) == {"a/b.py": b"x"}
    with pytest.raises(SandboxError, match="more than"):
        folder_files(tmp_path, max_bytes=0)


def test_nothing_of_a_folder_blocks(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    begin = time.monotonic()
    assert folder_files(tmp_path) == {}
    assert time.monotonic() - begin < 5.0
