"""Choosing a rung: what holds is used, what does not is named, and nothing is chosen silently."""

from __future__ import annotations

import asyncio
import platform
import struct
from dataclasses import replace

import pytest
from sandbox_rungs import HERE

from burnish.core.errors import ConfigError
from burnish.core.outcome import Owner
from burnish.core.sandbox import Rung, SandboxError, SandboxLimits, SandboxRefused
from burnish.sandbox import bpf, ladder
from burnish.sandbox.bpf import Confinement, filter_program
from burnish.sandbox.ladder import SandboxSpec, open_sandbox, plan_for, probe
from burnish.sandbox.local import LocalSandbox, Spawner


def opened(spec):
    async def main():
        sandbox = await open_sandbox(spec)
        try:
            return await sandbox.run(["python", "-I", "-c", "print(6*7)"])
        finally:
            await sandbox.close()

    return asyncio.run(main())


def tried(rung, spec=None):
    spawner = Spawner()
    try:
        return asyncio.run(probe(rung, spec or SandboxSpec(), spawner)).problem
    finally:
        spawner.close()


def test_the_best_rung_that_holds_is_opened_and_recorded():
    result = opened(None)
    assert (result.stdout, result.rung) == (b"42\n", HERE[0])


@pytest.mark.parametrize("rung", HERE, ids=str)
def test_a_named_rung_is_opened_and_no_other(rung):
    assert opened(SandboxSpec(rung=rung)).rung is rung


def test_nothing_that_holds_is_a_refusal_with_reasons_and_a_remedy(monkeypatch):
    monkeypatch.setattr(ladder, "_missing", lambda rung: "taken away")
    with pytest.raises(SandboxRefused, match=r"bwrap: taken away; .*landlock: taken away.*Remedy: apt install"):
        opened(SandboxSpec())


def test_unsafe_is_an_explicit_choice_and_a_rung_of_its_own(monkeypatch):
    with pytest.raises(SandboxRefused, match="unsafe=True"):
        opened(SandboxSpec(rung=Rung.UNSAFE))
    monkeypatch.setattr(ladder, "_missing", lambda rung: "taken away")
    assert opened(SandboxSpec(unsafe=True)).rung is Rung.UNSAFE


def test_unsafe_is_not_used_where_a_rung_holds():
    assert opened(SandboxSpec(unsafe=True)).rung is HERE[0]


def test_providers_are_no_rungs_of_this_machine():
    with pytest.raises(SandboxRefused, match="configured"):
        plan_for(Rung.DOCKER, SandboxSpec())


def test_a_rung_whose_program_is_missing_says_so(monkeypatch):
    monkeypatch.setattr("burnish.sandbox.plan.shutil.which", lambda *words, **more: None)
    with pytest.raises(SandboxRefused, match="apt install bubblewrap"):
        plan_argv()


def plan_argv():
    from burnish.sandbox.plan import bwrap_argv

    plan = plan_for(Rung.BWRAP, SandboxSpec())
    return bwrap_argv(plan, SandboxLimits(), {}, {"info": 6, "filter": 7})


class TestTheProbeNotices:
    """Each is a sandbox with one defence left out: the probe has to name what escaped."""

    @pytest.mark.parametrize("rung", HERE, ids=str)
    def test_files_that_can_be_read(self, rung, tmp_path):
        for folder in (tmp_path, *tmp_path.parents[:3]):
            folder.chmod(folder.stat().st_mode | 0o055)
        problem = tried(rung, SandboxSpec(scratch=str(tmp_path), readable=(str(tmp_path),)))
        assert "reads a file of the harness" in problem

    def test_everything_at_once(self, monkeypatch):
        real = ladder.plan_for
        monkeypatch.setattr(ladder, "plan_for", lambda rung, spec: replace(real(rung, spec), rung=Rung.UNSAFE))
        problem = tried(Rung.LANDLOCK)
        for escape in ("reads a file", "writes outside", "reaches the network"):
            assert escape in problem

    def test_an_interpreter_that_is_not_there(self):
        assert "probe ended with 127" in tried(HERE[0], SandboxSpec(interpreter="/usr/bin/no-such-python"))

    def test_another_architecture(self, monkeypatch):
        monkeypatch.setattr(platform, "machine", lambda: "riscv64")
        assert "architecture" in tried(Rung.LANDLOCK)
        with pytest.raises(SandboxError, match="riscv64"):
            filter_program(Confinement(has_namespaces=True))


def test_an_older_landlock_holds_too():
    """Landlock as of ABI 4 knows no scopes; the filter has to do without (as root a uid of the sandbox's own does)."""
    if Rung.LANDLOCK not in HERE:
        pytest.skip("no Landlock here")
    spawner = Spawner()
    sandbox = LocalSandbox(replace(plan_for(Rung.LANDLOCK, SandboxSpec()), abi=4), spawner)
    try:
        assert asyncio.run(ladder._try(sandbox)) == ""
    finally:
        spawner.close()


def verdict(program, number, *arguments, arch=0xC000003E):
    """What a filter answers: an interpreter of the few instructions that it uses."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *(*arguments, *[0] * (6 - len(arguments))))
    steps = list(struct.iter_unpack("=HBBI", program))
    at, loaded = 0, 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("=I", data, operand)
        elif code == 0x06:
            return operand
        else:
            holds = {0x15: loaded == operand, 0x35: loaded >= operand, 0x45: bool(loaded & operand)}[code]
            at += if_true if holds else if_false


ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x50000


class TestFilter:
    def test_ordinary_calls_pass(self):
        for confinement in (Confinement(has_namespaces=True), Confinement(has_namespaces=False, shares_uid=True)):
            program = filter_program(confinement)
            for number in (0, 1, 9, 59, 57, 61, 231):
                assert verdict(program, number) == ALLOW

    def test_foreign_architectures_and_x32_end_the_process(self):
        program = filter_program(Confinement(has_namespaces=True))
        assert verdict(program, 0, arch=0x40000003) == KILL
        assert verdict(program, 0x40000000 + 1) == KILL

    def test_every_named_call_is_refused(self):
        program = filter_program(Confinement(has_namespaces=True))
        for name in (*bpf._NEVER, *bpf._UNCOUNTED_MEMORY):
            assert verdict(program, bpf._CALLS[name]) == ERRNO | 1, name

    def test_arguments_decide(self):
        program = filter_program(Confinement(has_namespaces=True))
        clone, socket, ioctl = (bpf._CALLS[name] for name in ("clone", "socket", "ioctl"))
        assert verdict(program, clone, 0x3D0F00) == ALLOW
        assert verdict(program, clone, 0x10000000) == ERRNO | 1
        assert [verdict(program, socket, family) for family in (1, 2, 10)] == [ALLOW] * 3
        assert [verdict(program, socket, family) for family in (16, 17, 38, 40)] == [ERRNO | 97] * 4
        assert verdict(program, ioctl, 0, 0x5401) == ALLOW
        assert verdict(program, ioctl, 0, 0x5412) == ERRNO | 1

    def test_without_namespaces_no_socket_no_session_no_other_process(self):
        program = filter_program(Confinement(has_namespaces=False))
        numbers = bpf._CALLS
        assert verdict(program, numbers["socket"], 1) == ERRNO | 13
        assert verdict(program, numbers["socketpair"], 1) == ALLOW
        assert verdict(program, numbers["setsid"]) == ERRNO | 1
        assert verdict(program, numbers["prlimit64"], 0) == ALLOW
        assert verdict(program, numbers["prlimit64"], 1234) == ERRNO | 1
        assert verdict(program, numbers["chmod"]) == verdict(program, numbers["kill"]) == ALLOW

    def test_a_shared_uid_closes_what_permissions_would_allow(self):
        shared = Confinement(has_namespaces=False, shares_uid=True)
        assert verdict(filter_program(shared), bpf._CALLS["chmod"]) == ERRNO | 1
        assert verdict(filter_program(shared), bpf._CALLS["kill"], 1) == ALLOW
        unscoped = replace(shared, scopes_signals=False)
        assert verdict(filter_program(unscoped), bpf._CALLS["kill"], 1) == ERRNO | 1


def test_limits_must_be_above_zero():
    with pytest.raises(ConfigError, match="wall_s"):
        SandboxLimits(wall_s=0)


def test_a_sandbox_that_fails_is_nobodys_zero():
    assert SandboxError("x").owner is Owner.INFRASTRUCTURE
