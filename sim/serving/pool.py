"""Replicas that are alike, and the pools of them that a scenario names, checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from sim.engine.engine import Engine
from sim.engine.protocol import ServingEngine
from sim.load import find
from sim.scenario import Scenario, with_front_end
from sim.serving.assemble import Parts, assemble, resolved
from sim.specs.fleet import BOTH, DECODE, PREFILL
from sim.specs.front_end import OFF, FrontEndSettings
from sim.specs.parallel import Parallel
from traces.schema import InputError
from traces.table import Columns


@dataclass(frozen=True, slots=True)
class Pool:
    """At most `count` replicas of the same parts. `role`: "both" serve requests from the prompt to the end."""

    parts: Parts
    count: int
    role: str = BOTH
    name: str = ""
    start: int = 0
    """How many serve at first, where their number changes; else 0, and all do."""
    serves: tuple[str, ...] = ()
    """Models that it answers, as a trace names them; of one that says none, its model's own names."""

    def engines(self, *, spans: bool) -> list[ServingEngine]:
        """A fresh engine for each rank of each replica."""
        return [self.engine(spans=spans) for _ in range(self.ranks)]

    def engine(self, *, spans: bool) -> ServingEngine:
        """A fresh engine."""
        # What one replica evicts to a store another may ask for, so that no step may repeat.
        engine = self.parts.engine(spans=spans and not self.shares_store)
        if self.role == PREFILL:
            assert isinstance(engine, Engine)
            engine.sends = True
        return engine

    @property
    def steps_together(self) -> bool:
        """Whether the ranks of a replica do, which share experts."""
        return self.parts.parallel.dp > 1

    @property
    def ranks(self) -> int:
        """Schedulers of all its replicas: tables number these through as replicas."""
        return self.count * self.parts.scenario.dp

    @property
    def shares_store(self) -> bool:
        """Whether several caches are above one store."""
        return bool(self.parts.scenario.tiers.store_gib) and self.ranks > 1

    @property
    def link_bytes_per_s(self) -> float:
        """Of a rank's links to others: each of its GPUs has its own."""
        return self.parts.parallel.rank_gpus * self.parts.scenario.transfer.bytes_per_s


def each_replica(pools: Sequence[Pool]) -> list[Pool]:
    """The pool of each replica's every rank, by its number."""
    return [pool for pool in pools for _ in range(pool.ranks)]


def numbers(pools: Sequence[Pool]) -> list[range]:
    """The replicas of each pool, every rank by itself."""
    ends = list(accumulate(pool.ranks for pool in pools))
    return [range(end - pool.ranks, end) for pool, end in zip(pools, ends, strict=True)]


def pools_of(scenario: Scenario) -> tuple[Pool, ...]:
    """The pools of a scenario; of one without any, all its replicas.

    Raises:
        InputError: as `assemble`, naming the pool; pools that do not go together.
    """
    if not scenario.pools:
        return (_pool(scenario),)
    if scenario.executor == "live":
        raise InputError("executor is live, and a live run has one model on one device; pools are simulated")
    made = []
    for name, pool in served_by(scenario).pools.items():
        own = replace(pool.scenario, transfer=scenario.transfer, routing=scenario.routing)
        try:
            made.append(_pool(own, pool.role, name, pool.serves))
        except InputError as error:
            raise type(error)(f"pools.{name}: {error}") from None
    drafting = [pool for pool in made if pool.parts.drafter is not None]
    if drafting and len(made) > 1:
        raise InputError(f"pools.{drafting[0].name}: policy.name is speculative, and drafts are told of one pool alone")
    _check_names(made)
    for of_model in by_model(made).values():
        _check_roles(of_model, scenario)
    return tuple(made)


def by_model(pools: Sequence[Pool]) -> dict[str, list[Pool]]:
    """The pools of each model, by its name."""
    found: dict[str, list[Pool]] = {}
    for pool in pools:
        found.setdefault(pool.parts.model.name, []).append(pool)
    return found


def served_names(pools: Sequence[Pool]) -> dict[str, str]:
    """By name that a request's model may have, the model; empty where all requests are for the one that there is."""
    if len(by_model(pools)) == 1 and not any(pool.serves for pool in pools):
        return {}
    return {
        name: pool.parts.model.name
        for pool in pools
        for name in pool.serves or (pool.parts.model.name, pool.parts.scenario.model)
    }


def models_asked(requests: Columns, pools: Sequence[Pool]) -> list[str] | None:
    """Of each request the model that is to answer it, "" where no pool serves what it names.

    None where all requests are for the one model that there is.

    Raises:
        InputError: there are several, and the requests name none.
    """
    known = served_names(pools)
    if not known:
        return None
    if "model" not in requests:
        raise InputError(
            f"the pools serve {', '.join(known)}, and the trace does not say which request is for which: it has no "
            "column model; workload.model_shares draws it"
        )
    return [known.get(name, "") for name in requests["model"]]


def _check_names(pools: Sequence[Pool]) -> None:
    first: dict[str, Pool] = {}
    for pool in pools:
        for name in pool.serves:
            other = first.setdefault(name, pool)
            if other.parts.model.name != pool.parts.model.name:
                raise InputError(
                    f"pools.{pool.name} serves {name} with {pool.parts.model.name}, and pools.{other.name} with "
                    f"{other.parts.model.name}: requests for {name} could go to either"
                )


def _pool(scenario: Scenario, role: str = BOTH, name: str = "", serves: tuple[str, ...] = ()) -> Pool:
    scales, start = scenario.autoscale, scenario.replicas
    if not scales.on:
        return Pool(assemble(scenario), start, role, name, serves=serves)
    if not scales.min <= start <= scales.max:
        what = "count" if name else "replicas"
        raise InputError(
            f"{what} is {start}, with how many it begins, and autoscale lets it have {scales.min} to {scales.max}"
        )
    return Pool(assemble(scenario), scales.max, role, name, start, serves)


def check_changes(scenario: Scenario, pools: Sequence[Pool]) -> bool:
    """Whether replicas of this fleet fail, restart, come or go.

    Raises:
        InputError: they do, and something else of the scenario is not modelled beside that.
    """
    what = "autoscale" if any(pool.start for pool in pools) else ""
    if scenario.failures.on:
        what = "failures"
        limits = [
            name for name in ("max_num_queued_reqs", "max_num_queued_tokens") if getattr(scenario.front_end, name)
        ]
        if limits:
            raise InputError(
                f"failures and front_end.{limits[0]} are both set, and a client who has a part of its answer is not "
                "refused the rest"
            )
    for pool in pools if what else ():
        named = f"{_where(pool).removeprefix(' of ')}: " if pool.name else ""
        if pool.parts.drafter is not None:
            raise InputError(f"{named}policy.name is speculative, and {what} beside drafts are not modelled")
        if pool.parts.engine_class is not None:
            raise InputError(f"{named}engine.name is {pool.parts.scenario.engine.name}, which is not started anew")
        parallel = pool.parts.scenario.parallel
        if parallel.dp > 1 or parallel.pp > 1:
            raise InputError(f"{named}{what} of replicas of several ranks or stages is not modelled ({parallel})")
    return bool(what)


def served_by(scenario: Scenario) -> Scenario:
    """The scenario without a front end where prompts and answers are of different pools: none is modelled there."""
    if scenario.front_end.on and any(pool.role == PREFILL for pool in scenario.pools.values()):
        return with_front_end(scenario, FrontEndSettings(OFF))
    return scenario


def resolved_pools(scenario: Scenario, pools: Sequence[Pool]) -> Scenario:
    """The scenario with what was derived spelled out, in each of its pools."""
    if not scenario.pools:
        return resolved(scenario, pools[0].parts)
    own = {pool.name: pool for pool in pools}
    return replace(
        scenario,
        pools={
            name: replace(pool, scenario=resolved(pool.scenario, own[name].parts))
            for name, pool in scenario.pools.items()
        },
    )


def router_traits(scenario: Scenario, pools: Sequence[Pool]) -> dict[str, Any]:
    """What the router of these pools declares of itself.

    Raises:
        InputError: it asks for what no replica tells.
    """
    _, traits = find("sim.routers", scenario.router.name, scenario.router.parameters)
    if traits["reads_cache"]:
        for pool in pools:
            if not pool.parts.traits["finds_prefixes"]:
                raise InputError(
                    f"router {scenario.router.name} asks what a replica's cache holds of a prompt, and allocator "
                    f"{pool.parts.scenario.allocator.name}{_where(pool)} finds no prefixes; --allocator prefix does"
                )
    if traits["reads_adapters"]:
        for pool in pools:
            if pool.parts.adapters is None:
                raise InputError(
                    f"router {scenario.router.name} asks which adapters a replica has, and lora.max_loras"
                    f"{_where(pool)} is 0, with which it has none"
                )
    return traits


def _where(pool: Pool) -> str:
    return f" of pools.{pool.name}" if pool.name else ""


def _check_roles(pools: Sequence[Pool], scenario: Scenario) -> None:
    """Refuse pools whose roles or caches do not go together, and links without a rate."""
    by_role = {role: [pool for pool in pools if pool.role == role] for role in (PREFILL, DECODE, BOTH)}
    one, other = (PREFILL, DECODE) if by_role[PREFILL] else (DECODE, PREFILL)
    if by_role[one] and not by_role[other]:
        raise InputError(f"pools.{by_role[one][0].name}.role is {one}, and no pool of its model has the role {other}")
    if not by_role[PREFILL]:
        return
    if by_role[BOTH]:
        raise InputError(
            f"pools.{by_role['both'][0].name}.role is both, beside pools of the roles prefill and decode; "
            "give it one of these (transfer.min_prompt_tokens lets short prompts be computed where they are decoded)"
        )
    if not scenario.transfer.gb_per_s:
        raise InputError(
            "transfer.gb_per_s is not set: KV goes from prefill to decode pools over a link of so many 1e9 bytes per "
            "second and GPU (50 for 400 Gbit/s InfiniBand; inf takes no time)"
        )
    for pool in pools:
        _check_sends(pool)
    kept = {pool.name: _kept(pool) for pool in pools}
    sender, *others = kept
    for name in others:
        for what, value in kept[name].items():
            if value != kept[sender][what]:
                raise InputError(
                    f"pools.{name}: {what} is {value} and that of pools.{sender} is {kept[sender][what]}; KV that is "
                    "sent must be kept alike"
                )


def _kept(pool: Pool) -> dict[str, Any]:
    parts = pool.parts
    return {
        "kv.dtype": parts.model.kv_dtype,
        "kv.block_tokens": parts.pool.block_tokens,
        "what the allocator keeps": parts.layout.recent_tokens or "all tokens",
    }


def _check_sends(pool: Pool) -> None:
    """Refuse parts from which, or to which, no KV can be sent."""
    parts, where = pool.parts, f"pools.{pool.name}"
    named = f"policy {parts.scenario.policy.name}"
    if parts.engine_class is not None:
        raise InputError(f"{where}: engine.name is {parts.scenario.engine.name}, which sends no KV and takes none")
    _, policy = find("sim.policies", parts.scenario.policy.name, parts.scenario.policy.parameters)
    why = {
        f"{named} holds the memory of finished requests itself": policy["holds_finished"],
        f"{named} drafts, and drafts of requests that come from elsewhere are not modelled": policy["drafts"],
        f"allocator {parts.scenario.allocator.name} keeps no KV": parts.traits["keeps_nothing"],
        "its layers keep KV of several kinds, whose transfer is not modelled": bool(parts.layout.groups),
        "kv.swap_gib is set, and swapping beside transfers is not modelled": bool(parts.host_blocks),
        "offload.kv_layers is set, and KV in host memory is not sent": bool(parts.scenario.offload.kv_layers),
    }
    for reason, holds in why.items():
        if holds:
            raise InputError(f"{where}.role is {pool.role}, and {reason}")


def kv_bytes(pool: Pool, tokens: int) -> float:
    """Bytes of the KV of so many tokens, on all GPUs of a replica together; heads that GPUs repeat are sent once."""
    tp = pool.parts.parallel.tp
    own = pool.parts.model.gpu_kv_bytes_per_token(Parallel(tp))
    return float(tokens * min(own * tp, pool.parts.model.gpu_kv_bytes_per_token(Parallel())))
