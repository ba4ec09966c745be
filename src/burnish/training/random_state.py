"""The state of every random number generator as plain JSON values."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from burnish.core.errors import CheckpointError

NamedGenerators = Mapping[str, random.Random | np.random.Generator | torch.Generator]


def capture_random_state(generators: NamedGenerators | None = None) -> dict[str, Any]:
    """The global generators of Python, numpy and torch (each CUDA device's too), and `generators` by name.

    The result is JSON-able: integers, strings, lists, mappings.
    """
    named = {name: _capture(generator) for name, generator in (generators or {}).items()}
    return {
        "python": _capture(random),
        "numpy": _capture_numpy_global(),
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        "named": named,
    }


def restore_random_state(state: Mapping[str, Any], generators: NamedGenerators | None = None) -> None:
    """Undo `capture_random_state`.  Raises CheckpointError for other generators or another number of CUDA devices."""
    named = state["named"]
    if set(named) != set(generators or {}):
        raise CheckpointError(f"the checkpoint holds generators {sorted(named)}, asked for {sorted(generators or {})}")
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(state["cuda"]) != devices:
        raise CheckpointError(f"the checkpoint holds {len(state['cuda'])} CUDA generators, this machine has {devices}")
    random.setstate(_python_state(state["python"]))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(_from_hex(state["torch"]))
    if devices:
        torch.cuda.set_rng_state_all([_from_hex(text) for text in state["cuda"]])
    for name, generator in (generators or {}).items():
        _restore(generator, named[name])


def _capture(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    if isinstance(generator, torch.Generator):
        return _hex(generator.get_state())
    version, internal, gauss = generator.getstate()
    return [version, list(internal), gauss]


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, torch.Generator):
        generator.set_state(_from_hex(state))
    else:
        generator.setstate(_python_state(state))


def _python_state(state: Any) -> tuple[int, tuple[int, ...], float | None]:
    version, internal, gauss = state
    return version, tuple(internal), gauss


def _capture_numpy_global() -> list[Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return [kind, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)]


def _plain(value: Any) -> Any:
    """Numpy's bit generator state with its arrays and scalars as Python values; its setter takes them back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _hex(state: torch.Tensor) -> str:
    return bytes(state.cpu().numpy().tobytes()).hex()


def _from_hex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
