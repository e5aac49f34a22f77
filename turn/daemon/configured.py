"""A configuration read whole, and all that is made of it before anything of it is in force."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stun.oauth import Tokens
from turn.daemon.addresses import Lister, LocalAddress
from turn.daemon.certificate import Certificate
from turn.daemon.plan import Credential, Plan, make_plan, make_tokens
from turn.daemon.settings import Settings


@dataclass(frozen=True, slots=True)
class Configured:
    """What turnd is to be, or is."""

    settings: Settings
    addresses: tuple[LocalAddress, ...]
    """This machine's, when the plan was made."""
    plan: Plan
    certificate: Certificate
    tokens: Tokens | None
    made_up: Credential | None
    """The user of a configuration that has none."""

    @classmethod
    def read(
        cls,
        load: Callable[[], Settings],
        lister: Lister,
        made_up: Credential | None = None,
    ) -> Configured:
        """Read it, with ``made_up`` for the user if there is to be one and was before.

        Raises ``StunError`` for whatever is wrong with it.
        """
        settings, addresses = load(), lister()
        return cls(
            settings,
            addresses,
            make_plan(settings, addresses),
            Certificate(settings),
            make_tokens(settings),
            None if settings.auth.anybody else made_up or make_up_user("user"),
        )

    def changes(self, before: Configured) -> Iterator[str]:
        """Say what is another than before, of what the server machine does not know."""
        settings, old = self.settings, before.settings
        if self.certificate.fingerprint != before.certificate.fingerprint:
            yield f"certificate: {self.certificate}"
        if settings.tls and old.tls and settings.tls.minimum != old.tls.minimum:
            yield f"TLS {settings.tls.minimum} and later"
        if self.plan.proxies != before.plan.proxies:
            trusted = {host for networks in self.plan.proxies.values() for host in networks}
            yield f"proxies: {', '.join(sorted(trusted)) or 'none'}"
        if settings.workers != old.workers:
            yield f"workers: {settings.workers} from the next start of turnd on"
        if settings.log != old.log:
            yield f"log: {settings.log.format}, {settings.log.level}"
        if settings.auth.nonce_secret != old.auth.nonce_secret:
            yield "nonces: another secret"
        if settings.auth.nonce_lifetime != old.auth.nonce_lifetime:
            yield f"nonces live {settings.auth.nonce_lifetime} s"
        if settings.auth.oauth != old.auth.oauth:
            yield "access tokens: " + ("none" if self.tokens is None else "other keys")


def make_up_user(kind: str) -> Credential:
    """Return a user whose password nobody can guess."""
    return Credential(f"{kind}-{secrets.token_hex(3)}", secrets.token_urlsafe(15))


def nonce_secret(settings: Settings) -> bytes:
    """Return the secret that nonces are made with; another each time if none is configured."""
    secret = settings.auth.nonce_secret
    return secrets.token_bytes(32) if secret is None else secret.text.encode()
