"""A policy as a user writes one: it grants each request by hand, and knows nothing but the step that it is given."""


def by_hand(step):
    for req in list(step.running):
        if step.generated(req) >= 0:
            step.grant(req)
    if not step.entries:
        step.advance_running()
    if not step.entries or not step.evicted:
        for req in step.waiting:
            if not step.grant(req, 100):
                break
