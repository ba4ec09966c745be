"""Checkpoints that are whole or not there.

A checkpoint is a folder.  It is written under a temporary name, each file is synced, a manifest with the SHA-256 and
size of each file is written last, then the folder is renamed and its parent synced: a kill at any moment leaves the old
state or the new one.  Loading trusts nothing that the manifest does not confirm; what fails is renamed `corrupt_...`
and the checkpoint before it is used.  Tensors are safetensors, the rest is JSON: reading a checkpoint runs no code.

    model.safetensors, optimizer.safetensors, random.json, state.json, manifest.json, and files given (config.json)

With a model's config.json beside it, `AutoModelForCausalLM.from_pretrained(folder)` loads the weights.

There is one writer.  Others that look into the folder of a running run pass `repair=False`: they rename nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from burnish.core.errors import CheckpointError
from burnish.core.hashing import bytes_hash, canonical_json

MANIFEST = "manifest.json"
_TEMPORARY, _CORRUPT, _REPLACED = ".tmp_", "corrupt_", ".replaced_"
_FORMAT = 1
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRef:
    """A checkpoint on disk.  `CheckpointRef(name="rl_000020", path=Path("run/checkpoints/rl_000020"), sequence=3)`

    sequence: grows by one with every checkpoint saved into the folder; the largest is the newest.  sha256: of the
    manifest, and through it of everything.
    """

    name: str
    path: Path
    sequence: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory, on the CPU.

    `Checkpoint(ref=..., model_state={"lm_head.weight": ...}, optimizer_state={"steps": ...}, rng={...},
    state={"phase": "rl", "step": 20})`.  set_aside: names of the folders that were found corrupt on the way to it.
    """

    ref: CheckpointRef
    model_state: Mapping[str, Tensor]
    optimizer_state: Mapping[str, Tensor]
    rng: Mapping[str, Any]
    state: Mapping[str, Any]
    set_aside: tuple[str, ...] = ()


def save_checkpoint(
    directory: Path,
    name: str,
    *,
    model_state: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Tensor],
    rng: Mapping[str, Any],
    state: Mapping[str, Any],
    files: Mapping[str, str] | None = None,
) -> CheckpointRef:
    """Save a checkpoint as `directory/name`; an older one of that name is replaced, one set aside is left alone.

    rng and state: JSON-able without NaN (`capture_random_state`; cursor, versions, hashes).  files: more texts by file
    name, such as config.json.  Raises CheckpointError where the disk is full or cannot be written; then the checkpoints
    saved before are untouched.
    """
    _check_name(name)
    texts = {"random.json": canonical_json(rng), "state.json": canonical_json(state), **(files or {})}
    temporary = directory / f"{_TEMPORARY}{name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _tidy(directory)
        temporary.mkdir()
        for file, text in texts.items():
            (temporary / file).write_text(text, encoding="utf-8")
        for part, tensors in (("model", model_state), ("optimizer", optimizer_state)):
            whole = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
            safetensors.torch.save_file(whole, temporary / f"{part}.safetensors", metadata={"format": "pt"})
        sequence = 1 + max((ref.sequence for ref in list_checkpoints(directory)), default=0)
        sha256 = _write_manifest(temporary, name, sequence)
        _rename_into_place(temporary, directory / name)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {name} could not be saved in {directory}: {error}; "
            "free disk space and resume, the checkpoints saved before are untouched"
        ) from error
    return CheckpointRef(name=name, path=directory / name, sequence=sequence, sha256=sha256)


def list_checkpoints(directory: Path) -> list[CheckpointRef]:
    """Checkpoints with a readable manifest, newest first; their files are not verified here."""
    refs = [ref for path in _folders(directory) if (ref := _ref(path)) is not None]
    return sorted(refs, key=lambda ref: ref.sequence, reverse=True)


def load_latest(directory: Path, *, repair: bool = True) -> Checkpoint:
    """The newest checkpoint that verifies; those that do not are renamed `corrupt_...` and listed in `set_aside`.

    repair: whether to rename; without it bad ones are passed over.  Raises CheckpointError if none is left.
    """
    if repair:
        _tidy(directory)
    set_aside: list[str] = []
    for path in sorted(_folders(directory), key=_newest_first):
        if not verify(path):
            return _read(path, tuple(set_aside))
        set_aside.append(_quarantine(path) if repair else path.name)
    found = f"; set aside as corrupt: {', '.join(set_aside)}" if set_aside else ""
    raise CheckpointError(f"no usable checkpoint in {directory}{found}")


def load_checkpoint(directory: Path, name: str, *, repair: bool = True) -> Checkpoint:
    """The checkpoint of that name.

    Raises CheckpointError if it is missing, or does not verify (then it is set aside, unless `repair` is False).
    """
    _check_name(name)
    if repair:
        _tidy(directory)
    path = directory / name
    if not path.is_dir():
        known = ", ".join(ref.name for ref in list_checkpoints(directory)) or "none"
        raise CheckpointError(f"no checkpoint {name} in {directory}; there are: {known}")
    problem = verify(path)
    if problem:
        where = f"; set aside as {_quarantine(path)}" if repair else ""
        raise CheckpointError(f"checkpoint {name} is corrupt ({problem}){where}; use an older one")
    return _read(path, ())


def verify(path: Path) -> str:
    """What is wrong with the checkpoint folder `path`, "" for nothing: every byte of every file is checked."""
    manifest = _manifest(path)
    if manifest is None:
        return f"{MANIFEST} is missing or damaged"
    try:
        odd = set(manifest["files"]) ^ ({file.name for file in path.iterdir()} - {MANIFEST})
        if odd:
            return f"files differ from the manifest: {', '.join(sorted(odd))}"
        for file, expected in manifest["files"].items():
            size = (path / file).stat().st_size
            if size != expected["bytes"]:
                return f"{file} has {size} bytes, expected {expected['bytes']}"
            if _file_hash(path / file) != expected["sha256"]:
                return f"the hash of {file} does not hold"
    except OSError as error:
        return f"it cannot be read: {error}"
    return ""


def keep_newest(directory: Path, count: int, *, keep: frozenset[str] = frozenset()) -> list[str]:
    """Delete all but the newest `count` (at least 1) checkpoints and those in `keep`; returns the names deleted."""
    if count < 1:
        raise ValueError(f"at least one checkpoint is kept, got count {count}")
    doomed = [ref for ref in list_checkpoints(directory)[count:] if ref.name not in keep]
    for ref in doomed:
        shutil.rmtree(ref.path)
    return [ref.name for ref in doomed]


def _check_name(name: str) -> None:
    if not name or name.startswith((".", _CORRUPT)) or "/" in name or os.sep in name:
        raise ValueError(f"a checkpoint's name is one plain folder name, not starting with . or corrupt_, got {name!r}")


def _folders(directory: Path) -> list[Path]:
    """Folders that count as checkpoints, in name order; half-written and corrupt ones do not.

    One that was being replaced counts: a kill between the two renames must not lose it.
    """
    if not directory.is_dir():
        return []
    skipped = (_TEMPORARY, _CORRUPT)
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(skipped))


def _manifest(path: Path) -> dict[str, Any] | None:
    """The manifest if every byte of it is right: it is the canonical text of its content and carries its own hash."""
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        content = {key: value for key, value in manifest.items() if key != "sha256"}
        whole = canonical_json(manifest) == text and manifest["sha256"] == _content_sha(content)
    except (OSError, ValueError, AttributeError, KeyError):
        return None
    return manifest if whole and content["format"] == _FORMAT else None


def _content_sha(content: Mapping[str, Any]) -> str:
    return bytes_hash(canonical_json(content).encode())


def _ref(path: Path) -> CheckpointRef | None:
    manifest = _manifest(path)
    if manifest is None:
        return None
    return CheckpointRef(name=path.name, path=path, sequence=manifest["sequence"], sha256=manifest["sha256"])


def _newest_first(path: Path) -> float:
    """Sort key.  What has no readable manifest comes first of all, so that it is seen and set aside."""
    ref = _ref(path)
    return -float(ref.sequence) if ref else -math.inf


def _write_manifest(folder: Path, name: str, sequence: int) -> str:
    """Sync every file, then write the manifest that vouches for them; returns its own hash."""
    files = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _file_hash(path)}
    content = {"format": _FORMAT, "name": name, "sequence": sequence, "files": files}
    sha256 = _content_sha(content)
    (folder / MANIFEST).write_text(canonical_json({**content, "sha256": sha256}), encoding="utf-8")
    _sync(folder / MANIFEST)
    _sync(folder)
    return sha256


def _rename_into_place(temporary: Path, target: Path) -> None:
    """Rename, moving an older checkpoint of that name aside first (a folder cannot be renamed onto a full one)."""
    replaced = target.with_name(f"{_REPLACED}{target.name}")
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    temporary.rename(target)
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _quarantine(path: Path) -> str:
    """Rename to the first free `corrupt_` name, and say which."""
    plain = path.name.removeprefix(_REPLACED)
    target, count = path.with_name(f"{_CORRUPT}{plain}"), 1
    while target.exists():
        count += 1
        target = path.with_name(f"{_CORRUPT}{plain}_{count}")
    path.rename(target)
    _sync(path.parent)
    return target.name


def _tidy(directory: Path) -> None:
    """Finish what a killed save left behind: drop its half-written folder, and put back what it was replacing."""
    for path in directory.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(f"{_REPLACED}*"):
        target = path.with_name(path.name.removeprefix(_REPLACED))
        if target.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(target)


def _read(path: Path, set_aside: tuple[str, ...]) -> Checkpoint:
    ref = _ref(path)
    try:
        if ref is None:
            raise FileNotFoundError(f"{MANIFEST} is gone")
        return Checkpoint(
            ref=ref,
            model_state=safetensors.torch.load_file(path / "model.safetensors"),
            optimizer_state=safetensors.torch.load_file(path / "optimizer.safetensors"),
            rng=json.loads((path / "random.json").read_text(encoding="utf-8")),
            state=json.loads((path / "state.json").read_text(encoding="utf-8")),
            set_aside=set_aside,
        )
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} changed while it was read ({error}); try again") from error


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
