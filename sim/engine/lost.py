"""What is left of the requests of an engine that dies: they are asked for anew, with the tokens that were out."""

from __future__ import annotations

from sim.engine.engine import Engine
from sim.engine.request import Request


def lost(engine: Engine, out_step: int) -> list[Request]:
    """The unfinished requests of an engine that dies when the output of its step `out_step` was the last to come out.

    As they are to be sent again: nothing of them is computed, and known are the prompt and the tokens that were out,
    which their clients have. In the order of admission, then as they waited, then those who wait for KV. The engine is
    of no use afterwards, but for its `tokens`, of which what never came out is gone. Requests of several sequences and
    drafts are not modelled.
    """
    roster, tokens = engine.roster, engine.tokens
    roster.scatter()
    live = list(dict.fromkeys((*roster.running, *roster.waiting, *roster.placed, *roster.expected)))
    for req in live:
        tokens.close(req)
    unseen = tokens.cut(out_step)
    return [anew(req, unseen.get(req.id, 0)) for req in live]


def anew(req: Request, unseen: int = 0) -> Request:
    """A request that no engine has, as this one is to be sent again: all its tokens but the `unseen` last are known."""
    again = part(req, req.output_tokens)
    again.known = req.known - unseen
    again.preemptions, again.prefix_hit_tokens = req.preemptions, req.prefix_hit_tokens
    again.first_scheduled_s, again.first_token_s = req.first_scheduled_s, req.first_token_s
    return again


def part(req: Request, output_tokens: int) -> Request:
    """A request that no engine has, for so many tokens of this one's answer, of which it knows what this one does."""
    again = Request(req.id, req.arrival_s, req.prompt_tokens, output_tokens, req.priority, req.prefix)
    again.session, again.adapter = req.session, req.adapter
    again.known = req.known
    return again
