"""What is tried before turnd starts, and before it goes over to another plan, not half-way."""

from __future__ import annotations

import secrets

from stun.errors import StunError
from stun.sansio import Cause
from turn.daemon.announce import advise, alternate_advice, ports_advice, relay_advice
from turn.daemon.plan import Plan
from turn.daemon.probe import no_free_port, problem_with_listener, problem_with_relay


class CannotStart(StunError):
    """turnd cannot serve: what is wrong and what to do, a line for each thing."""


def check_machine(plan: Plan) -> None:
    """Raise :class:`CannotStart` if nothing could be relayed, or nothing discovered."""
    wrong = []
    for relay in plan.config.relays:
        problem = problem_with_relay(relay.local)
        if problem is not None:
            wrong.append(relay_advice(relay, problem))
        elif no_free_port(relay.local, plan.config.ports, secrets.randbelow):
            wrong.append(ports_advice(relay.local, plan.config.ports))
    for _, alternate in plan.config.discovery:
        problem = problem_with_relay(alternate.host)
        if problem is not None:
            wrong.append(alternate_advice(alternate.host, problem))
    if wrong:
        raise CannotStart("\n".join(wrong))


def check_new(plan: Plan, before: Plan) -> None:
    """Raise :class:`CannotStart` if what ``plan`` has and ``before`` has not cannot be had."""
    there = {(at.transport.protocol, at.local) for at in before.config.listeners}
    problems = [
        problem
        for at in plan.config.listeners
        if (at.transport.protocol, at.local) not in there
        and (problem := problem_with_listener(at)) is not None
        and not (at.local in plan.passing and problem.cause is Cause.ADDRESS_NOT_AVAILABLE)
    ]
    if problems:
        raise CannotStart("\n".join(advise(problems, plan.passing)))
    if (plan.config.relays, plan.config.ports) != (before.config.relays, before.config.ports):
        check_machine(plan)
