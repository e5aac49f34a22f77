"""Two aioice connections that may use nothing but a relay: HOST[,HOST] PORT USER PASSWORD KIND.

Of two hosts each side has one.  KIND is udp, tcp or tls; with tls the server's certificate is not
verified.  Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys

import aioice

MESSAGES = 20


def connection(controlling: bool) -> aioice.Connection:
    hosts, port, user, password, kind = sys.argv[1:6]
    host = hosts.split(",")[0 if controlling else -1]
    return aioice.Connection(
        ice_controlling=controlling,
        turn_server=(host, int(port)),
        turn_username=user,
        turn_password=password,
        turn_transport="udp" if kind == "udp" else "tcp",
        turn_ssl=kind == "tls",
        transport_policy=aioice.TransportPolicy.RELAY,
    )


async def main() -> dict[str, object]:
    a, b = connection(True), connection(False)
    for one in (a, b):
        await one.gather_candidates()
    for one, other in ((a, b), (b, a)):
        for candidate in other.local_candidates:
            await one.add_remote_candidate(candidate)
        await one.add_remote_candidate(None)
        one.remote_username, one.remote_password = other.local_username, other.local_password
    await asyncio.gather(a.connect(), b.connect())
    sent = [b"%d " % n + b"x" * (n * 50) for n in range(MESSAGES)]
    result: dict[str, object] = {}
    for name, one, other in (("a", a, b), ("b", b, a)):
        for message in sent:
            await one.send(message)
        result[name] = {
            "right": [await other.recv() for _ in sent] == sent,
            "types": sorted({candidate.type for candidate in one.local_candidates}),
        }
    await asyncio.gather(a.close(), b.close())
    return result


if __name__ == "__main__":
    if sys.argv[5] == "tls":
        # aioice takes no context of the caller's.
        ssl.create_default_context = ssl._create_unverified_context  # type: ignore[assignment]
    print(json.dumps(asyncio.run(asyncio.wait_for(main(), 30))))
