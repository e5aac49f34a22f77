"""turnd's configuration as it is written: every key, its type, its default.

The models refuse what they do not know.  Nothing here knows this machine:
:mod:`turn.daemon.plan` makes of settings what is served on it.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from stun.attributes import SOFTWARE
from stun.credentials import Profile, check_username
from stun.errors import StunError, UsageError
from stun.oauth import TokenKey
from stun.sansio import Address
from stun.strings import StringError
from stun.users import StoredKeys
from turn.daemon import settings_values as values
from turn.daemon.settings_values import Hidden, ListenUrl, Relay, WebUrl
from turn.server.config import DEFAULT_PORTS, Limits
from turn.server.policy import PeerPolicy

DIRECTORY = "directory"
"""In the context of validation: what relative paths start from."""


def _directory(info: ValidationInfo) -> Path:
    return cast("Path", (info.context or {}).get(DIRECTORY, Path()))


def _hidden(value: Any, info: ValidationInfo) -> Hidden:
    return values.hidden(value, _directory(info))


def _credential(value: Any, info: ValidationInfo) -> Hidden | StoredKeys:
    return values.credential(value, _directory(info))


def _path(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError('it must be the path of a file, as "/etc/turnd/fullchain.pem"')
    return _directory(info) / value


def _socket(value: Any, info: ValidationInfo) -> Path | Literal[False]:
    if value is False or value == "":
        return False
    if not isinstance(value, str | Path):
        raise ValueError('it must be a path, as "/run/turnd/turnd.sock", or false for none')
    return _directory(info) / value


def _one_or_several(value: Any) -> Any:
    # A table is a secret's: {file = "PATH"}.
    return [value] if isinstance(value, str | dict) else value


Listener: TypeAlias = Annotated[ListenUrl, PlainValidator(values.listen_url)]
RelayHost: TypeAlias = Annotated[Relay, PlainValidator(values.relay)]
Host: TypeAlias = Annotated[str, PlainValidator(values.host)]
Port: TypeAlias = Annotated[int, PlainValidator(values.port_number)]
Ports: TypeAlias = Annotated[tuple[int, int], PlainValidator(values.port_range)]
Network: TypeAlias = Annotated[str, PlainValidator(values.network)]
Place: TypeAlias = Annotated[Address, PlainValidator(values.address)]
Server: TypeAlias = Annotated[Address, PlainValidator(lambda v: values.address(v, 3478))]
Secret: TypeAlias = Annotated[Hidden, PlainValidator(_hidden)]
Credential: TypeAlias = Annotated[Hidden | StoredKeys, PlainValidator(_credential)]
File: TypeAlias = Annotated[Path, PlainValidator(_path)]
OneOrSeveral: Any = BeforeValidator(_one_or_several)
Web: TypeAlias = Annotated[WebUrl, PlainValidator(values.web_url)]
Networks: TypeAlias = Annotated[tuple[Network, ...], OneOrSeveral, Field(strict=False)]
Hosts: TypeAlias = Annotated[tuple[Host, ...], OneOrSeveral, Field(strict=False)]
Seconds: TypeAlias = Annotated[int, Field(ge=1, le=86400)]
Amount: TypeAlias = Annotated[int, Field(ge=0, le=1 << 53)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Listen(_Table):
    """``[[listen]]``: where clients come to."""

    url: Listener
    proxy: Annotated[tuple[Network, ...], OneOrSeveral, Field(strict=False)] = ()
    """Networks whose connections begin with a PROXY protocol header; as ``?proxy=`` in the URL."""
    advertise: Host | None = None
    """The address as clients see it, behind a one-to-one NAT; as ``?advertise=``."""

    @model_validator(mode="after")
    def _proxies_have_streams(self) -> Listen:
        if self.proxy and self.url.transport.protocol == "udp":
            raise ValueError("proxy: the PROXY protocol is for tcp and tls only")
        return self

    @property
    def place(self) -> ListenUrl:
        """The URL with what was said beside it."""
        url = self.url
        return ListenUrl(
            url.transport,
            url.host,
            url.port,
            url.proxies + self.proxy,
            self.advertise or url.advertised,
        )


class Tls(_Table):
    """``[tls]``: the certificate of TLS and DTLS, in PEM."""

    certificate: File
    key: File | None = None
    """Its private key, if not in the same file."""
    password: Secret | None = None
    """Of the key, if it is encrypted."""
    minimum: Literal["1.2", "1.3"] = "1.2"
    detect: bool = True
    """Take TLS and DTLS clients on the plain tcp and udp listeners as well, told apart by their
    first octet."""


class Relaying(_Table):
    """``[relay]``: where relayed transport addresses are."""

    addresses: Annotated[tuple[RelayHost, ...], OneOrSeveral, Field(strict=False)] = ()
    """``A`` or ``A=PUBLIC``; none: see :func:`turn.daemon.addresses.choose_relays`."""
    ports: Ports = DEFAULT_PORTS
    tcp: bool = True
    """TCP allocations (RFC 6062)."""
    mobility: bool = True
    """Allocations that follow their clients to other addresses (RFC 8016)."""
    default_lifetime: Seconds = 600
    """Of an allocation whose client asks for none."""
    max_lifetime: Seconds = 3600

    @field_validator("max_lifetime")
    @classmethod
    def _norm(cls, value: int) -> int:
        # RFC 8656 section 3.2 makes 10 minutes the default, and clients refresh a minute before.
        if value < 120:
            raise ValueError(f"{value} is too short: clients refresh a minute before the end")
        return value

    @model_validator(mode="after")
    def _in_order(self) -> Relaying:
        if self.default_lifetime > self.max_lifetime:
            raise ValueError(
                f"default_lifetime ({self.default_lifetime}) must not be more than "
                f"max_lifetime ({self.max_lifetime})"
            )
        return self


class OauthKey(_Table):
    """``[[auth.oauth.keys]]``: a key that an authorization server shares (RFC 7635)."""

    kid: str
    key: Secret
    """In base64."""
    algorithm: str = "A256GCM"
    timestamp: Amount = 0
    lifetime: Amount = 0

    @model_validator(mode="after")
    def _is_a_key(self) -> OauthKey:
        self.token_key()
        return self

    def token_key(self) -> TokenKey:
        """Return it as :mod:`stun.oauth` takes it."""
        try:
            return TokenKey.from_base64(
                self.kid,
                self.key.text,
                self.algorithm,
                timestamp=self.timestamp,
                lifetime=self.lifetime,
            )
        except UsageError as error:
            raise ValueError(str(error)) from None


class Oauth(_Table):
    """``[auth.oauth]``: access tokens instead of passwords (RFC 7635)."""

    server_name: Annotated[str, Field(min_length=1)]
    """What tokens must have been made for."""
    keys: Annotated[tuple[OauthKey, ...], Field(strict=False, min_length=1)]


class Auth(_Table):
    """``[auth]``: who may relay.  Without anybody turnd makes up one user when it starts."""

    users: dict[str, Credential] = {}
    secrets: Annotated[tuple[Secret, ...], OneOrSeveral, Field(strict=False)] = ()
    """For time-limited credentials (TURN REST); the first one makes them, all are accepted."""
    store: str | None = None
    """A database of users: ``sqlite:///PATH``, ``redis://HOST:PORT/NUMBER``."""
    anonymous: bool = False
    """Ask clients for USERHASH instead of USERNAME (RFC 8489 section 9.2)."""
    sha256: bool = True
    """Offer SHA-256 beside MD5 (RFC 8489)."""
    nonce_secret: Secret | None = None
    """Shared by the servers behind one address, so that each takes the others' nonces."""
    nonce_lifetime: Seconds = 3600
    oauth: Oauth | None = None

    @field_validator("users")
    @classmethod
    def _sendable(cls, users: dict[str, Hidden | StoredKeys]) -> dict[str, Hidden | StoredKeys]:
        for name, value in users.items():
            try:
                check_username(name, Profile.OPAQUE_STRING)
                if isinstance(value, Hidden):
                    Profile.OPAQUE_STRING.prepare(value.text)
            except (StringError, UsageError) as error:
                raise ValueError(f"the user {name!r}: {error}") from None
        return users

    @field_validator("store")
    @classmethod
    def _known_store(cls, url: str | None) -> str | None:
        if url is not None:
            from turn.users.base import where

            try:
                where(url)
            except UsageError as error:
                raise ValueError(str(error)) from None
        return url

    @field_validator("nonce_secret")
    @classmethod
    def _long_enough(cls, secret: Hidden | None) -> Hidden | None:
        if secret is not None and len(secret.text.encode()) < 16:
            raise ValueError("the secret of nonces must have 16 octets at least")
        return secret

    @property
    def who(self) -> tuple[object, ...]:
        """Whoever may relay, to be compared."""
        return self.users, self.secrets, self.store

    @property
    def anybody(self) -> bool:
        """Whether it says who may relay."""
        return bool(self.users or self.secrets or self.store or self.oauth)


class Peers(_Table):
    """``[peers]``: whom clients may relay to; see :mod:`turn.server.policy`."""

    allow: Networks = ()
    deny: Networks = ()
    nat64: Networks = ()
    """Prefixes of NAT64 translators near the server (RFC 6052)."""

    @field_validator("nat64")
    @classmethod
    def _are_prefixes(cls, nat64: tuple[str, ...]) -> tuple[str, ...]:
        try:
            PeerPolicy(nat64=nat64)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return nat64


_limits: Any = {field.name: (Amount, field.default) for field in fields(Limits)}
# One field a field of Limits, so that a limit is declared once.
LimitTable = create_model("LimitTable", __base__=_Table, **_limits)
"""``[limits]``: :class:`turn.server.config.Limits`."""


class MetricsTable(_Table):
    """``[metrics]``: Prometheus' figures over HTTP."""

    listen: Place | None = None


class Log(_Table):
    """``[log]``."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Admin(_Table):
    """``[admin]``: the socket of ``turnd sessions`` and the like."""

    socket: Annotated[Path | Literal[False], PlainValidator(_socket)] | None = None
    """``None``: :func:`turn.daemon.admin.default_path`; ``false``: none."""


class Discovery(_Table):
    """``[discovery]``: NAT behaviour discovery (RFC 5780), which needs a second address."""

    alternates: Annotated[tuple[Host, ...], OneOrSeveral, Field(strict=False)] = ()
    """Second addresses of this machine, one a family."""
    port: Port = 3479
    """The second port."""


class Rendezvous(_Table):
    """``[rendezvous]``: where two programs meet; served if there is such a table."""

    listen: Annotated[tuple[Web, ...], OneOrSeveral, Field(strict=False)] = (
        WebUrl(False, values.EVERY_HOST, 8080),
    )
    proxies: Networks = ()
    """HTTP proxies whose ``X-Forwarded-For`` is believed."""

    @field_validator("listen")
    @classmethod
    def _of_one_kind(cls, listen: tuple[WebUrl, ...]) -> tuple[WebUrl, ...]:
        if not listen:
            raise ValueError("it must not be empty; without the table there is no rendezvous")
        ports: dict[int, WebUrl] = {}
        for url in listen:
            if ports.setdefault(url.port, url).secure is not url.secure:
                raise ValueError(f"{ports[url.port]} and {url}: a port is either for ws or wss")
        return listen

    def __str__(self) -> str:
        return ", ".join(map(str, self.listen))


class Settings(_Table):
    """The whole configuration."""

    realm: Annotated[str, Field(min_length=1, max_length=127)] = "natkit"
    software: str | None = None
    """What SOFTWARE says in responses to authentic requests; none by default."""
    fingerprint: bool | None = None
    """FINGERPRINT in responses: always, never, or where the request has it."""
    alternate_servers: Annotated[tuple[Server, ...], OneOrSeveral, Field(strict=False)] = ()
    """Where new clients are sent with 300 (Try Alternate), in turn."""
    partial: bool = False
    """Serve even when some listeners cannot be had."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that relay, beside one that looks after them (:mod:`turn.daemon.workers`); 1: it is
    all one process."""
    dataplane: Literal["auto", "kernel", "sockets"] = "auto"
    """Relay in the kernel: where that can be, always (or not start), never."""
    idle: Seconds = 60
    """A connection without an allocation is closed after this long without a request."""
    listen: Annotated[tuple[Listen, ...], Field(strict=False)] = ()
    tls: Tls | None = None
    relay: Relaying = Relaying()
    auth: Auth = Auth()
    peers: Peers = Peers()
    limits: LimitTable = LimitTable()  # type: ignore[valid-type]  # a model made at run time
    metrics: MetricsTable = MetricsTable()
    log: Log = Log()
    admin: Admin = Admin()
    discovery: Discovery = Discovery()
    rendezvous: Rendezvous | None = None

    @field_validator("software")
    @classmethod
    def _software_is_sendable(cls, software: str | None) -> str | None:
        try:
            SOFTWARE.to_octets(software or "")
        except StunError as error:
            raise ValueError(str(error)) from None
        return software

    @field_validator("realm")
    @classmethod
    def _realm_is_sendable(cls, realm: str) -> str:
        try:
            return Profile.OPAQUE_STRING.prepare(realm)
        except (StringError, UsageError) as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _workers_have_sockets(self) -> Settings:
        if self.workers > 1 and self.dataplane == "kernel":
            raise ValueError(
                f'workers = {self.workers} with dataplane = "kernel": several workers relay with '
                "sockets; the kernel's data plane uses all processors with one"
            )
        return self

    @model_validator(mode="after")
    def _tls_has_a_certificate(self) -> Settings:
        for listen in self.listen:
            if listen.url.transport.is_secure and self.tls is None:
                raise ValueError(
                    f"listen: {listen.url} needs a certificate: --cert PEM (and --key PEM), "
                    "or certificate in [tls]"
                )
        for place in self.rendezvous.listen if self.rendezvous is not None else ():
            if place.secure and self.tls is None:
                raise ValueError(
                    f"rendezvous: {place} needs a certificate: --cert PEM (and --key PEM), "
                    "or certificate in [tls]"
                )
        return self

    @property
    def who(self) -> tuple[object, ...]:
        """Whatever users are made of, to be compared."""
        return self.auth.who, self.realm, self.rendezvous is None

    def make_limits(self) -> Limits:
        """Return ``[limits]`` as the server machine takes them."""
        return Limits(**cast("BaseModel", self.limits).model_dump())


def allowed_keys(path: tuple[str | int, ...]) -> list[str]:
    """Return the keys that the table at ``path`` may have; empty where any or none may be."""
    model: Any = Settings
    for part in path:
        if isinstance(part, int):
            continue
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = _model_in(field.annotation)
    return sorted(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """Return the model that an annotation holds: ``Tls | None``, ``tuple[Listen, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_in(part)
        if found is not None:
            return found
    return None
