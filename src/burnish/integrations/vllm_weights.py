"""Handing a policy's weights to a running vLLM server, and making sure that they arrived.

The way is a folder that learner and server both see (on one machine best in memory, below /dev/shm): the learner writes
one safetensors file, the server reads it into the model that it is serving (`reload_weights`), on CPU and GPU alike.
The server needs `VLLM_SERVER_DEV_MODE=1` for its routes outside /v1, and a model folder written by `server_folder`.

Where input and output embedding are one tensor, vLLM on a CPU packs a copy of it for the output layer, and a reload of
the shared tensor leaves that copy as it was (seen with 0.32).  So both are always sent, and `server_folder` makes a
model in which they are two, since some model classes skip the second where the configuration ties them.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx

from burnish.core.errors import InvariantViolation, RunStopped
from burnish.core.sampling import SampleRequest, SamplingParams
from burnish.integrations.completions import CompletionsSampler
from burnish.integrations.endpoint import Endpoint, EndpointCause, EndpointError, EndpointOptions, malformed

if TYPE_CHECKING:
    from torch import Tensor, nn

    Score = Callable[[Sequence[array[int]], Sequence[array[int]]], Sequence[Sequence[float]]]

CANARY_TOKENS = 8
RESUME_S = 5.0
ABORT_GRACE_S = 1.0
"""How long requests may take to come back after an abort; what has not, waits in the server's queue and is recalled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """What one update took.  `WeightUpdate(version=12, size_bytes=1_900_000, write_s=0.01, held_s=0.09, verified=13)`

    held_s: how long no request was under way.  verified: tensors whose bits the server was seen to hold.
    """

    version: int
    size_bytes: int
    write_s: float
    held_s: float
    verified: int


class VllmWeights:
    """`await VllmWeights(sampler, "http://127.0.0.1:8000", Path("/dev/shm/run")).update(model, version)`

    folder: seen by this process and by the server; what is written there is removed after each update.  interrupt:
    running actions are cut and go on with the new weights, otherwise an update waits for them to end.
    """

    def __init__(
        self,
        sampler: CompletionsSampler,
        server_url: str,
        folder: Path,
        api_key: str = "",
        *,
        interrupt: bool = False,
        timeout_s: float = 600.0,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._sampler = sampler
        self._folder = folder.absolute()
        self._interrupt = interrupt
        options = EndpointOptions(timeout_s=timeout_s, max_attempts=3, max_in_flight=4)
        self._server = Endpoint(server_url, api_key, options=options, sleep=sleep, transport=transport)

    async def update(self, model: nn.Module, version: int) -> WeightUpdate:
        """Make the server hold the weights of `model` as `version`, and the sampler say so.

        Raises RunStopped where the server fails on the way, InvariantViolation where it holds other weights afterwards;
        then the sampler answers no more.
        """
        started_s = time.perf_counter()
        state = server_state(model)
        folder = self._folder / f"version-{version}"
        try:
            size_bytes = await anyio.to_thread.run_sync(_write, state, folder)
            written_s = time.perf_counter()
            async with self._server.line(), self._sampler.gate.shut():
                if not self._interrupt:
                    await self._sampler.gate.empty()
                held_s = time.perf_counter()
                async with self._paused():
                    await self._load(folder, version)
                    verified = await self._verify(state, version)
                self._sampler.version = version
        except EndpointError as error:
            raise RunStopped(
                "weight_update_failed",
                f"the server did not take version {version}: {error}; it needs VLLM_SERVER_DEV_MODE=1, a model folder "
                f"made by server_folder, and to see {folder}",
            ) from error
        except OSError as error:
            raise RunStopped("weight_update_failed", f"could not write {folder}: {error}; free space there") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return WeightUpdate(
            version=version,
            size_bytes=size_bytes,
            write_s=written_s - started_s,
            held_s=time.perf_counter() - held_s,
            verified=verified,
        )

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """The server computes nothing while the body runs; it goes on afterwards in any case, since one that stays
        paused lets every later request hang."""
        try:
            await self._post("/pause?mode=abort")
            if not await self._sampler.gate.empty(ABORT_GRACE_S):
                self._sampler.gate.recall()
                await self._sampler.gate.empty()
            yield
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(RESUME_S), suppress(EndpointError):
                await self._post("/resume")
            raise
        await self._post("/resume")

    async def _load(self, folder: Path, version: int) -> None:
        await self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        # Keys and values of the old weights must not meet the new ones.
        await self._post("/reset_prefix_cache", read=_succeeded)
        await self._post("/update_weight_version", {"new_version": str(version)})

    async def _verify(self, state: Mapping[str, Tensor], version: int) -> int:
        told = await self._server.get("/weight_info", lambda data: str(data.get("weight_version")))
        if told != str(version):
            raise InvariantViolation(
                "sampler_freshness", f"the server says version {told} after the update to {version}"
            )
        try:
            sums: Mapping[str, str] = await self._post(
                "/weight_checker", {"action": "checksum"}, read=lambda data: data.get("checksums") or {}
            )
        except EndpointError as error:
            if error.cause is EndpointCause.NOT_FOUND:
                return 0
            raise
        return _compare(state, sums, version)

    async def _post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        read: Callable[[dict[str, Any]], Any] = lambda data: data,
    ) -> Any:
        return await self._server.post(path, body or {}, read)


async def check_arrival(
    sampler: CompletionsSampler, prompts: Sequence[array[int]], score: Score, *, tolerance: float
) -> float:
    """Largest difference between the server's log-probabilities and the learner's own, on actions drawn now.

    score: the learner's log-probabilities of actions (second argument) after prompts (first).

    Raises InvariantViolation beyond `tolerance` nats: the server computes with other weights than the learner.
    """
    requests = [
        SampleRequest(
            key=f"canary/{index}",
            prompt_ids=prompt,
            params=SamplingParams(),
            max_tokens=CANARY_TOKENS,
            seed=index,
            stop_ids=(),
        )
        for index, prompt in enumerate(prompts)
    ]
    samples = await sampler.sample(requests)
    own = score(prompts, [sample.token_ids for sample in samples])
    difference = max(
        (
            abs(a - b)
            for sample, mine in zip(samples, own, strict=True)
            for a, b in zip(sample.logprobs, mine, strict=True)
        ),
        default=math.inf,
    )
    if not difference <= tolerance:
        raise InvariantViolation(
            "sampler_freshness",
            f"at version {sampler.version} canary log-probabilities of server and learner differ by {difference:.2e} "
            f"nats (max {tolerance:.0e}): the server holds other weights, or computes in another precision",
        )
    return difference


def server_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights as the server is to hold them: adapters merged, the output embedding a tensor of its own."""
    from burnish.training.lora import merged_state
    from burnish.training.model_state import is_adapted

    base: Any = model.get_base_model() if is_adapted(model) else model  # type: ignore[operator]
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in merged_state(model).items()}
    names = {id(module): name for name, module in base.named_modules(remove_duplicate=False)}
    head = f"{names[id(base.get_output_embeddings())]}.weight"
    if head not in state:
        state[head] = state[f"{names[id(base.get_input_embeddings())]}.weight"].clone()
    return state


def server_folder(model: nn.Module, tokenizer: Any, out: Path, *, stop_ids: Sequence[int] = ()) -> Path:
    """A Hugging Face folder to start the server with: `export_folder`, with the embeddings as two tensors.

    Raises what `export_folder` raises.
    """
    from burnish.training.export import export_folder

    export_folder(model, tokenizer, out, stop_ids=stop_ids)
    for path in [*out.glob("*.safetensors"), *out.glob("*.safetensors.index.json")]:
        path.unlink()
    _save(server_state(model), out)
    config = json.loads((out / "config.json").read_text())
    for part in (config, config.get("text_config") or {}):
        if "tie_word_embeddings" in part or part is config:
            part["tie_word_embeddings"] = False
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return out


def _write(state: Mapping[str, Tensor], folder: Path) -> int:
    """Bytes written to `folder`, which is new afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return _save(state, folder)


def _save(state: Mapping[str, Tensor], folder: Path) -> int:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    try:
        save_file(dict(state), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    return path.stat().st_size


def _compare(state: Mapping[str, Tensor], sums: Mapping[str, str], version: int) -> int:
    """How many vectors the server holds bit for bit, by SHA-256.

    Only vectors (norms) are compared: servers fuse, pad and repack matrices.  A learner's step moves the norms as well,
    so an update that never came is seen; that every matrix arrived is for the canary to show.
    """
    held = {name.rpartition(":")[2]: digest for name, digest in sums.items()}
    vectors = {name: tensor for name, tensor in state.items() if tensor.ndim == 1 and name in held}
    stale = [name for name, tensor in vectors.items() if held[name] not in _digests(tensor)]
    if stale:
        raise InvariantViolation(
            "sampler_freshness",
            f"after the update to version {version} the server holds other weights than the learner in {len(stale)} of "
            f"{len(vectors)} vectors, first {stale[0]}: the update did not reach it",
        )
    return len(vectors)


def _digests(tensor: Tensor) -> set[str]:
    """SHA-256 of the bytes in each precision that a server may hold."""
    import torch

    kinds = (torch.float32, torch.bfloat16, torch.float16)
    return {hashlib.sha256(tensor.to(kind).view(torch.uint8).numpy().tobytes()).hexdigest() for kind in kinds}


def _succeeded(data: Mapping[str, Any]) -> None:
    if data.get("success") is not True:
        raise malformed("the server could not reset its prefix cache")
