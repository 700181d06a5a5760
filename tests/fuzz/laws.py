"""Laws that one run's tables must keep by themselves: each takes a run and says, sentence by sentence, what is wrong.

What is recomputed here is written from docs/metrics.md and shares no code with the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from .case import Run

Law = Callable[[Run], Iterator[str]]
TIMES = ("first_scheduled_s", "first_token_s", "finish_s")
CLASSES = ("used", "shared", "reserved", "internal", "external", "free")


def conservation(run: Run) -> Iterator[str]:
    """Every request of the trace stands in the table, as it was asked for, completed or rejected with a reason."""
    table, asked = run.requests, run.trace.requests
    if len(table) != len(asked) or (table["request"] != np.arange(len(table))).any():
        yield f"{len(asked)} requests were asked for, and the table has {len(table)}"
        return
    for name in ("prompt_tokens", "output_tokens", "priority", "session", "turn", "source_row"):
        if name in asked and (table[name] != asked[name]).any():
            yield f"{name} is not what was asked for"
    ended = table["status"]
    if not ended.isin(("completed", "rejected")).all():
        yield f"requests ended as {sorted(set(ended))}"
    rejected, done = table[ended == "rejected"], run.done
    if (
        rejected[list(TIMES)].notna().any(axis=None)
        or (rejected["replica"] != -1).any()
        or (rejected["reason"] == "").any()
    ):
        yield "a rejected request has times, a replica or no reason"
    if done[list(TIMES)].isna().any(axis=None) or (done["reason"] != "").any():
        yield "a completed request lacks a time or has a reason"
    if not done["replica"].between(0, run.plan.replicas - 1).all():
        yield "a completed request was served by no replica"
    if len(rejected) and not run.plan.workload.skip_bad:
        yield "requests were rejected, and the scenario does not skip any"
    counts = {name: int((ended == name).sum()) for name in ("completed", "rejected", "unfinished")}
    if run.summary["requests"] != {"total": len(table), **counts, "dropped": run.trace.dropped}:
        yield f"the summary counts {run.summary['requests']}, the table {counts}"


def causality(run: Run) -> Iterator[str]:
    """A request arrives, is scheduled, gets a token and ends, in this order, at ends of its replica's steps."""
    done = run.done
    late = (
        (done["arrival_s"] > done["first_scheduled_s"])
        | (done["first_scheduled_s"] >= done["first_token_s"])
        | (done["first_token_s"] > done["finish_s"])
        | ((done["output_tokens"] == 1) & (done["samples"] == 1) & (done["first_token_s"] != done["finish_s"]))
    )
    for at in done.index[late]:
        yield f"request {at}: {done.loc[at, ['arrival_s', *TIMES]].to_dict()}"
    for index, ends_s in enumerate(run.result.step_end_s):
        of = done[done["replica"] == index]
        for name in ("first_token_s", "finish_s"):
            if not np.isin(of[name], ends_s).all():
                yield f"{name} is no end of a step of replica {index}"
        if not run.asynchronous and not np.isin(of["first_scheduled_s"], run.replica(index)["start_s"]).all():
            yield f"first_scheduled_s is no start of a span of replica {index}"
    for key, parts in (
        ("queue_s", ("first_scheduled_s", "arrival_s")),
        ("ttft_s", ("first_token_s", "arrival_s")),
        ("e2e_s", ("finish_s", "arrival_s")),
    ):
        if not np.array_equal(done[key], done[parts[0]] - done[parts[1]]):
            yield f"{key} is not {' - '.join(parts)}"
    many = done[done["output_tokens"] > 1]
    mean = (many["finish_s"] - many["first_token_s"]) / (many["output_tokens"] - 1)
    if not np.allclose(many["tpot_s"], mean, rtol=1e-12, atol=0) or done["tpot_s"].notna().sum() != len(many):
        yield "tpot_s is not the mean gap"
    longest = many["max_itl_s"]
    if (
        run.one_each
        and ((longest < mean * (1 - 1e-9)) | (longest > (many["finish_s"] - many["first_token_s"]) * (1 + 1e-9))).any()
    ):
        yield "the longest gap lies below the mean gap or above all of them"


def arrivals(run: Run) -> Iterator[str]:
    """Requests come when the trace says, when their user is free, or when the one before them has been read."""
    table, asked, users = run.requests[run.kept], run.trace.requests[run.kept], run.plan.workload.concurrency
    arrival_s, finish_s = table["arrival_s"].to_numpy(), table["finish_s"].to_numpy()
    after = run.after if run.after is not None else np.full(len(table), -1)
    follows = after >= 0
    due_s = finish_s[after] + asked["think_s"].to_numpy() if follows.any() else arrival_s
    early = follows & ~((arrival_s >= due_s) & (arrival_s <= due_s + 1e-9 * (1 + due_s)))
    for at in np.flatnonzero(early):
        yield f"request {table.index[at]} came at {arrival_s[at]!r}, due at {due_s[at]!r}"
    if not users:
        if not np.array_equal(arrival_s[~follows], asked["arrival_s"].to_numpy()[~follows]):
            yield "a request of an open loop did not come at its time"
        return
    root = np.arange(len(table))
    for at in np.flatnonzero(follows):
        root[at] = root[after[at]]
    sessions = pd.DataFrame({"root": root, "start": arrival_s, "end": finish_s}).groupby("root")
    starts, ends = np.sort(sessions["start"].min()), np.sort(sessions["end"].max())
    if starts[:users].any():
        yield f"{users} users do not start at once: {starts[:users]}"
    if not np.allclose(starts[users:], ends[: max(0, len(ends) - users)], rtol=1e-9, atol=0):
        yield f"with {users} users, sessions start at {starts.tolist()} and end at {ends.tolist()}"


def clock(run: Run) -> Iterator[str]:
    """The steps of a replica follow one another, and last as long as device and host make them."""
    for index, ends_s in enumerate(run.result.step_end_s):
        steps = run.replica(index)
        first, repeats = steps["step"].to_numpy(), steps["repeats"].to_numpy()
        if not np.array_equal(first, np.cumsum(repeats) - repeats) or len(ends_s) != repeats.sum():
            yield f"replica {index}: steps {first.tolist()} of {repeats.tolist()} repeats on a clock of {len(ends_s)}"
            continue
        start_s, end_s = steps["start_s"].to_numpy(), steps["end_s"].to_numpy()
        if not np.array_equal(end_s, ends_s[first + repeats - 1]) or (np.diff(ends_s) <= 0).any():
            yield f"replica {index}: spans do not end where their last step does"
        if (start_s[1:] < end_s[:-1]).any() or (end_s <= start_s).any():
            yield f"replica {index}: spans overlap or take no time"
        device_s, host_s = steps["device_s"].to_numpy(), steps["host_s"].to_numpy()
        least_s, most_s = np.maximum(device_s, host_s), device_s + host_s
        if not run.asynchronous:
            least_s = most_s
        took_s, slack_s = end_s - start_s, 1e-9 * (1 + end_s)
        if (took_s < least_s - slack_s).any() or (took_s > most_s + slack_s).any():
            yield f"replica {index}: spans do not last as long as device and host"


def budgets(run: Run) -> Iterator[str]:
    """No step computes more tokens than its budget nor serves more sequences than there are seats."""
    steps, limits = run.steps, run.result.scenario.engine
    tokens = steps["prefill_tokens"] + steps["decode_requests"] + steps["draft_tokens"] - steps["padding_tokens"]
    if (tokens > limits.max_num_batched_tokens).any():
        yield f"{tokens.max()} tokens in a step of at most {limits.max_num_batched_tokens}"
    if (tokens < 1).any():
        yield "a step computes nothing for anybody"
    if (steps["running"] > limits.max_num_seqs).any():
        yield f"{steps['running'].max()} sequences run with {limits.max_num_seqs} seats"
    rows = steps["prefill_requests"] + steps["decode_requests"]
    if run.plan.policy.name != "static" and (rows > steps["running"]).any():
        yield "more rows than running sequences"
    if (
        steps[["prefill_tokens", "prefill_past_tokens", "decode_requests", "draft_tokens", "padding_tokens", "waiting"]]
        < 0
    ).any(axis=None):
        yield "a count below zero"


def work(run: Run) -> Iterator[str]:
    """Without preemption and drafts, each token of a prompt that was not found, and of an answer but the last, once."""
    steps, done = run.steps, run.done
    rows = steps["prefill_tokens"] + steps["decode_requests"] + steps["draft_tokens"]
    computed, padding = int((rows * steps["repeats"]).sum()), int((steps["padding_tokens"] * steps["repeats"]).sum())
    told = run.summary["computed"]
    if told["tokens"] != computed or told["padding_fraction"] != (padding / computed if computed else None):
        yield f"the summary says {told}, the steps {computed} tokens of which {padding} are padding"
    if (run.plan.policy.name == "static") < (padding > 0):
        yield "padding without static batches"
    if "speculation" in run.summary or run.plan.allocator.name == "no-cache" or not run.one_each:
        return
    needed = int((done["prompt_tokens"] + done["output_tokens"] - 1 - done["prefix_hit_tokens"]).sum())
    again = int(done["preemptions"].sum())
    if computed - padding < needed - int(done["prefix_hit_tokens"].sum()) * (again > 0):
        yield f"{computed - padding} tokens were computed, and {needed} are needed"
    if not again and computed - padding != needed:
        yield f"{computed - padding} tokens were computed, and {needed} are needed; nobody was preempted"


def memory(run: Run) -> Iterator[str]:
    """The KV classes add up to the capacity, at the end of each span and on average; peaks are those of the table."""
    steps, kv = run.steps, run.summary["kv"]
    slots = steps[[f"kv_{kind}_tokens" for kind in CLASSES]]
    wrong = (slots < 0).any(axis=1) | (slots.sum(axis=1) != kv["capacity_tokens"])
    if wrong.any():
        yield f"classes do not add up to {kv['capacity_tokens']}: {slots[wrong].head(1).to_dict('records')}"
    changing = sum(steps[f"kv_{kind}_mean_tokens"] for kind in ("used", "reserved", "internal", "free"))
    if not np.allclose(
        changing + steps["kv_shared_tokens"] + steps["kv_external_tokens"], kv["capacity_tokens"], rtol=1e-12
    ):
        yield f"the means of a span do not add up to {kv['capacity_tokens']}"
    if ((steps["kv_saved_tokens"] > 0) != (steps["kv_shared_tokens"] > 0)).any():
        yield "sharing saves without shared slots, or the other way round"
    for kind in CLASSES:
        told, most = kv["classes"][kind]["peak"], slots[f"kv_{kind}_tokens"].max()
        if not np.isclose(told, most / kv["capacity_tokens"], rtol=1e-12):
            yield f"the peak of {kind} is {told}, the table has {most} slots"
    means = [kv["classes"][kind]["mean"] for kind in CLASSES]
    if None not in means and (abs(sum(means) - 1) > 1e-9 or min(means) < -1e-9):
        yield f"the means {means} do not add up to 1"
    held = list(kv["waste"]["of_held"].values())
    if None not in held and (abs(sum(held) - 1) > 1e-9 or min(held) < -1e-9):
        yield f"the shares of what was held are {held}"
    if (
        kv["mean_used"] is not None
        and not kv["mean_used"] <= kv["peak_used"] + 1e-9 <= kv["peak_held"] + 2e-9 <= 1 + 3e-9
    ):
        yield f"mean_used {kv['mean_used']}, peak_used {kv['peak_used']}, peak_held {kv['peak_held']}"
    if kv["preemptions"] != run.requests["preemptions"].sum():
        yield f"the summary counts {kv['preemptions']} preemptions, the requests {run.requests['preemptions'].sum()}"
    for name in ("swapped_bytes", "copied_bytes"):
        if kv[name] != steps[name].sum():
            yield f"{name} is {kv[name]}, the steps have {steps[name].sum()}"
    if steps["swapped_bytes"].any() and not run.plan.kv.swap_gib:
        yield "bytes were swapped, and there is no host memory to swap to"


def content(run: Run) -> Iterator[str]:
    """What the pool holds is what was computed or found, less that of requests that have ended."""
    done, simple = run.done, not run.parts.layout.groups and run.plan.allocator.name != "no-cache"
    if not simple or run.plan.policy.name in ("static", "speculative") or not run.one_each or done["preemptions"].any():
        return
    for index in range(run.plan.replicas):
        steps, mine = run.replica(index), done[done["replica"] == index]
        if not len(steps):
            continue
        rows = (steps["prefill_tokens"] + steps["decode_requests"]) * steps["repeats"]
        ends_s = steps["end_s"].to_numpy()
        final = mine.assign(tokens=mine["prompt_tokens"] + mine["output_tokens"] - 1).sort_values("finish_s")
        gone = np.concatenate([[0], final["tokens"].cumsum()])[np.searchsorted(final["finish_s"], ends_s)]
        seen = mine.sort_values("first_scheduled_s")
        planned_s = steps["start_s"].to_numpy() if not run.asynchronous else ends_s
        found = np.concatenate([[0], seen["prefix_hit_tokens"].cumsum()])
        found = found[np.searchsorted(seen["first_scheduled_s"], planned_s, side="right")]
        held = steps["kv_used_tokens"] + steps["kv_shared_tokens"] + steps["kv_saved_tokens"]
        wanted = rows.cumsum().to_numpy() + found - gone
        wrong = (held != wanted).to_numpy() & ~(run.asynchronous & bool(found.any()))
        if wrong.any():
            at = int(np.argmax(wrong))
            yield f"replica {index}, span {at}: {held.iloc[at]} tokens' KV is held, and {wanted[at]} should be"


def hits(run: Run) -> Iterator[str]:
    """Prefix hits are whole blocks of prompts that were asked to share, and the summary's rates are theirs."""
    done, kv = run.done, run.summary["kv"]
    size = run.summary["kv"]["block_tokens"]
    found, most = done["prefix_hit_tokens"], done["prompt_tokens"]
    if ((found < 0) | (found >= most)).any():
        yield "a request found all of its prompt, or less than nothing"
    if (done["prefix_hit_blocks"] != found // size).any() or (done["prefix_blocks"] != (most - 1) // size).any():
        yield "hit blocks do not follow from hit tokens"
    if run.plan.allocator.name != "prefix" and found.any():
        yield "a hit without a prefix cache"
    tokens, blocks = int(most.sum()), int(done["prefix_blocks"].sum())
    if kv["prefix_hit_rate"] != (int(found.sum()) / tokens if tokens else None):
        yield f"prefix_hit_rate is {kv['prefix_hit_rate']}"
    if kv["prefix_hit_rate_blocks"] != (int(done["prefix_hit_blocks"].sum()) / blocks if blocks else None):
        yield f"prefix_hit_rate_blocks is {kv['prefix_hit_rate_blocks']}"


LAWS: dict[str, Law] = {
    law.__name__: law for law in (conservation, causality, arrivals, clock, budgets, work, memory, content, hits)
}
