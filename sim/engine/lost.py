"""What is left of the requests of an engine that dies: they are asked for anew, with the tokens that were out."""

from __future__ import annotations

from sim.engine.engine import Engine
from sim.engine.request import Request


def lost(engine: Engine, out_step: int) -> list[Request]:
    """The unfinished requests of an engine that dies when the output of its step `out_step` was the last to come out.

    As they are to be sent again: nothing of them is computed, and known are the prompt and the tokens that were out,
    which their clients have. In the order of admission, then as they waited. The engine is of no use afterwards, but
    for its `tokens`, of which what never came out is gone. Requests of several sequences and drafts are not modelled.
    """
    roster, tokens = engine.roster, engine.tokens
    roster.scatter()
    live = list(dict.fromkeys((*roster.running, *roster.waiting)))
    for req in live:
        tokens.close(req)
    unseen = tokens.cut(out_step)
    return [_anew(req, unseen.get(req.id, 0)) for req in live]


def _anew(req: Request, unseen: int) -> Request:
    """A request that no engine has, as this one was asked for, with all its tokens but the `unseen` last known."""
    again = Request(req.id, req.arrival_s, req.prompt_tokens, req.output_tokens, req.priority, req.prefix)
    again.session = req.session
    again.known = req.known - unseen
    again.preemptions, again.prefix_hit_tokens = req.preemptions, req.prefix_hit_tokens
    again.first_scheduled_s, again.first_token_s = req.first_scheduled_s, req.first_token_s
    return again
