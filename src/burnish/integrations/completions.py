"""A sampler over a server's `POST /completions` with token ids in and out, as vLLM answers it.

What makes its tokens fit for training: the ids that were drawn come back as ids (`return_token_ids`), the
log-probabilities are those of the distribution that was drawn from (vLLM: `--logprobs-mode processed_logprobs`), only
the settings of the request shape it, and whatever does not add up is tried again and never becomes a sample.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx

from burnish.core.errors import ConfigError
from burnish.core.hashing import derive_seed
from burnish.core.kept import KeptSets
from burnish.core.sampling import Finish, Sample, SampleRequest, SamplingParams
from burnish.integrations.endpoint import (
    Endpoint,
    EndpointCause,
    EndpointError,
    EndpointOptions,
    EndpointUsage,
    malformed,
    sample_all,
)
from burnish.integrations.gate import Gate

ROUTE = "/completions"
NO_CHANCE = -9998.0
"""Servers write minus infinity as -9999, since JSON has no infinities."""
LEAST_TEMPERATURE = 0.01
"""vLLM draws at 0.01 whatever smaller temperature is asked for."""
LARGEST_LOGPROB = 1e-3
MASS_TOLERANCE = 1e-3
"""How far the probabilities of a whole kept set may be from 1."""
_PROBE_PROMPT = array("i", range(1, 8))
"""Not id 0: after a padding id, whose embedding is zero, all tokens may be equally likely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionsOptions(EndpointOptions):
    """How to talk to a completions endpoint.  `CompletionsOptions(max_in_flight=256)`

    max_kept: the largest set that top-k and top-p may leave; the server's --max-logprobs must be as large.  extra_body:
    merged into every request.
    """

    max_in_flight: int = 256
    max_kept: int = 20
    send_seed: bool = True
    extra_body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What a server was found to be.  `ServerFacts(max_positions=4096, processed_logprobs=True)`

    max_positions: prompt and action together, None where it does not say.  processed_logprobs: whether its
    log-probabilities are those after temperature, top-k and top-p.
    """

    max_positions: int | None
    processed_logprobs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """One answer; `aborted` where the server was told to stop in the middle."""

    token_ids: array[int]
    logprobs: array[float]
    kept: KeptSets | None
    aborted: bool


class CompletionsSampler:
    """A core `Sampler` over `POST {base_url}/completions`.

    `CompletionsSampler("http://127.0.0.1:8000/v1", "policy")`.  Raises `EndpointError` (a `SamplerError`) once a
    request has failed for good, ConfigError where the server is not set up for training.  Equal prompts cost one
    prefill where the server caches prefixes.

    `version` is the policy version that the server holds, set by whoever updates its weights, inside `gate.shut()`.  An
    action that was cut by an update goes on from where it was, with the new weights; its tokens carry two versions.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str = "",
        *,
        options: CompletionsOptions | None = None,
        version: int = 0,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not model:
            raise ConfigError("model is empty; name the model that the endpoint serves")
        self.model = model
        self.version = version
        self.gate = Gate()
        self.options = options or CompletionsOptions()
        self._endpoint = Endpoint(base_url, api_key, options=self.options, sleep=sleep, transport=transport)
        self._facts: ServerFacts | None = None

    @property
    def usage(self) -> EndpointUsage:
        """Requests, retries and tokens so far, as the endpoint counts them."""
        return self._endpoint.usage

    async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        """One sample for each request, in order."""
        async with self._endpoint.line():
            facts = await self.facts() if requests else None
            return await sample_all(requests, lambda request: self._one(request, facts))

    async def facts(self) -> ServerFacts:
        """Ask the server, once.  Raises ConfigError where it cannot serve a sampler, EndpointError where it is away."""
        async with self._endpoint.line() as line, line.setup:
            if self._facts is None:
                self._facts = await self._find_out()
            return self._facts

    async def _find_out(self) -> ServerFacts:
        served = await self._endpoint.get("/models", _models)
        if self.model not in served:
            raise ConfigError(f"the server has no model {self.model!r}; it serves {', '.join(sorted(served))}")
        # After the filter two tokens share all probability, and temperature 2 halves the distance between them.  Raw
        # log-probabilities cannot do both, unless two tokens are about equal and all others nearly impossible.
        mass, gap = await self._probe(1.0)
        warm_mass, warm_gap = await self._probe(2.0)
        near = abs(2.0 * warm_gap - gap) <= 0.1 + 0.05 * gap
        processed = near and abs(mass - 1.0) < 1e-3 and abs(warm_mass - 1.0) < 1e-3
        return ServerFacts(max_positions=served[self.model], processed_logprobs=processed)

    async def _probe(self, temperature: float) -> tuple[float, float]:
        """What the two likeliest tokens have together, and the distance of their log-probabilities; top_k is 2."""
        params = SamplingParams(temperature=temperature, top_k=2)
        request = SampleRequest(key="probe", prompt_ids=_PROBE_PROMPT, params=params, max_tokens=1, seed=0, stop_ids=())
        body = self._body(request, _PROBE_PROMPT, 1, 0)

        def read(data: Mapping[str, Any]) -> tuple[float, float]:
            try:
                choice = data["choices"][0]
                _ints(choice["token_ids"])
                top = choice["logprobs"]["top_logprobs"][0]
                first, second = sorted((float(value) for value in top.values()), reverse=True)[:2]
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise ConfigError(
                    "the server answers without token ids or log-probabilities, so its tokens cannot be trained on; "
                    "it must know return_token_ids, as vLLM does from 0.10.2 on"
                ) from error
            return math.exp(first) + math.exp(second), first - second

        return await self.gate.passing(lambda: self._endpoint.post(ROUTE, body, read))

    async def _one(self, request: SampleRequest, facts: ServerFacts | None) -> Sample:
        """Ask until the action is whole; more than once where a weight update cut it."""
        most = _checked(request, facts)
        ids, logprobs, versions = array("i"), array("f"), array("i")
        kept: list[tuple[KeptSets | None, int]] = []
        idle = 0
        while True:
            piece, version = await self.gate.passing(lambda: self._ask(request, ids, most))
            ids.extend(piece.token_ids)
            logprobs.extend(piece.logprobs)
            versions.extend([version] * len(piece.token_ids))
            kept.append((piece.kept, len(piece.token_ids)))
            if not piece.aborted:
                break
            idle = 0 if piece.token_ids else idle + 1
            if idle == self.options.max_attempts:
                raise EndpointError(EndpointCause.SERVER_ERROR, "the server keeps aborting the request", attempts=idle)
        finish = Finish.STOP if ids[-1] in request.stop_ids else Finish.LENGTH
        return Sample(token_ids=ids, logprobs=logprobs, versions=versions, kept=KeptSets.join(kept), finish=finish)

    async def _ask(self, request: SampleRequest, drawn: array[int], most: int) -> tuple[_Piece, int]:
        """One request for what is missing, with the version that answers it."""
        version, prompt, room = self.version, request.prompt_ids + drawn, most - len(drawn)
        body = self._body(request, prompt, room, len(drawn))
        try:
            piece = await self._endpoint.post(
                ROUTE, body, lambda data: self._read(data, request, prompt, room), seed=request.seed
            )
        except EndpointError as error:
            if error.cause is EndpointCause.CONTEXT_TOO_LONG:
                raise _no_room(request, None) from error
            raise
        return piece, version

    def _body(self, request: SampleRequest, prompt: array[int], room: int, drawn: int) -> dict[str, Any]:
        """The JSON of one request; says every setting that shapes the distribution, since servers have defaults."""
        params = request.params
        greedy = params.temperature == 0.0
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": room,
            "temperature": params.temperature,
            "top_p": 1.0 if greedy else params.top_p,
            "top_k": 0 if greedy else params.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            # The model's own end-of-text id ends nothing unless the request names it.
            "ignore_eos": True,
            "stop_token_ids": list(request.stop_ids),
            "skip_special_tokens": False,
            # At each position: the drawn token, and as many of the likeliest as are needed to see the kept set.
            "logprobs": self.options.max_kept if _cuts(params) else 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if self.options.send_seed:
            # What follows a cut is drawn from a stream of its own, not from the beginning of the first one again.
            body["seed"] = derive_seed(request.seed, drawn) if drawn else request.seed % 2**63
        return body | dict(self.options.extra_body)

    def _read(self, data: Mapping[str, Any], request: SampleRequest, prompt: array[int], room: int) -> _Piece:
        """What was drawn.  Raises `AttemptFailed` for whatever does not add up."""
        self._endpoint.count(data.get("usage"))
        try:
            (choice,) = data["choices"]
            ids = _ints(choice["token_ids"])
            streams: Mapping[str, Any] = choice["logprobs"]
            logprobs = array("f", streams["token_logprobs"])
            echoed, reason = choice.get("prompt_token_ids"), choice.get("finish_reason")
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise malformed(f"no completion with token ids ({type(error).__name__}: {error})") from error
        if echoed is not None and echoed != list(prompt):
            raise malformed("the server completed another prompt than it was sent")
        _check_streams(ids, logprobs, reason, request.stop_ids, room)
        if request.params.temperature == 0.0:
            logprobs = array("f", bytes(4 * len(ids)))
        kept = self._kept(streams, ids, request.params) if _cuts(request.params) else None
        whole = len(ids) == room or (len(ids) > 0 and ids[-1] in request.stop_ids)
        return _Piece(token_ids=ids, logprobs=logprobs, kept=kept, aborted=reason == "abort" and not whole)

    def _kept(self, streams: Mapping[str, Any], ids: array[int], params: SamplingParams) -> KeptSets:
        try:
            tops = [
                {int(name.removeprefix("token_id:")): value for name, value in top.items() if value > NO_CHANCE}
                for top in streams["top_logprobs"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise malformed(f"the likeliest tokens cannot be read ({type(error).__name__}: {error})") from error
        if len(tops) != len(ids) or any(token not in top for token, top in zip(ids, tops, strict=True)):
            raise malformed("a drawn token is not among those it was drawn from")
        if any(abs(math.fsum(map(math.exp, top.values())) - 1.0) > MASS_TOLERANCE for top in tops):
            raise ConfigError(
                f"{params} leaves more than the {self.options.max_kept} likeliest tokens; raise max_kept and the "
                "server's --max-logprobs, or lower top_k or top_p"
            )
        return KeptSets(
            counts=array("i", [len(top) for top in tops]), ids=array("i", [one for top in tops for one in sorted(top)])
        )


def _cuts(params: SamplingParams) -> bool:
    return params.temperature > 0.0 and (params.top_k > 0 or params.top_p < 1.0)


def _checked(request: SampleRequest, facts: ServerFacts | None) -> int:
    """How many tokens the action may have.  Raises ValueError or ConfigError where the request cannot be answered."""
    params, length = request.params, len(request.prompt_ids)
    if not length or request.max_tokens < 1:
        raise ValueError(
            f"request {request.key!r} has a prompt of {length} tokens and asks for {request.max_tokens}; both are at "
            "least 1"
        )
    if not (params.temperature >= 0.0 and 0.0 < params.top_p <= 1.0 and params.top_k >= 0):
        raise ValueError(f"temperature >= 0, top_p in (0, 1] and top_k >= 0 are needed, got {params}")
    if 0.0 < params.temperature < LEAST_TEMPERATURE:
        raise ConfigError(
            f"servers draw at temperature {LEAST_TEMPERATURE} where less is asked for, so log-probabilities at "
            f"{params.temperature} would be wrong; use 0 (greedy) or at least {LEAST_TEMPERATURE}"
        )
    if facts is None:
        return request.max_tokens
    if not facts.processed_logprobs and params.temperature > 0.0 and (params.temperature != 1.0 or _cuts(params)):
        raise ConfigError(
            f"the server gives log-probabilities before temperature, top-k and top-p, and {params} would be trained on "
            "with wrong ones; start it with --logprobs-mode processed_logprobs, or sample at temperature 1 from all"
        )
    if facts.max_positions is None:
        return request.max_tokens
    if length >= facts.max_positions:
        raise _no_room(request, facts.max_positions)
    return min(request.max_tokens, facts.max_positions - length)


def _no_room(request: SampleRequest, positions: int | None) -> ConfigError:
    most = f"{positions} positions" if positions is not None else "fewer positions"
    return ConfigError(
        f"the prompt of request {request.key!r} has {len(request.prompt_ids)} tokens and the server's model {most}; "
        f"lower limits.max_context_tokens, or serve with a larger --max-model-len"
    )


def _check_streams(ids: array[int], logprobs: array[float], reason: Any, stop_ids: tuple[int, ...], room: int) -> None:
    """Raises `AttemptFailed` where token ids, log-probabilities and the reason for the end contradict each other."""
    if reason not in ("stop", "length", "abort"):
        raise malformed(f"the completion ended for reason {reason!r}")
    if len(ids) != len(logprobs):
        raise malformed(f"{len(ids)} token ids came with {len(logprobs)} log-probabilities")
    bad = [value for value in logprobs if not NO_CHANCE < value <= LARGEST_LOGPROB]
    if bad:
        raise malformed(f"{bad[0]} is no log-probability of a token that was drawn")
    if any(token < 0 for token in ids):
        raise malformed(f"{min(ids)} is no token id")
    if any(token in stop_ids for token in ids[:-1]):
        raise malformed("tokens follow a stop id")
    stopped = len(ids) > 0 and ids[-1] in stop_ids
    if reason == "stop" and not stopped:
        raise malformed(f"it says that a stop id ended the action, and none of {stop_ids} does")
    if len(ids) > room or (reason == "length" and not stopped and len(ids) != room):
        raise malformed(f"{len(ids)} tokens came back where {room} were asked for")


def _ints(values: Any) -> array[int]:
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise TypeError(f"token ids are a list of whole numbers, got {values!r:.60}")
    return array("i", values)


def _models(data: Mapping[str, Any]) -> dict[str, int | None]:
    """Context lengths of the served models by name."""
    try:
        return {str(one["id"]): one.get("max_model_len") for one in data["data"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise malformed(f"the list of models cannot be read ({type(error).__name__}: {error})") from error
