"""aiortc as the peer of a page (browser/page.html), over the same letter boxes.

    ice_aiortc.py aioice|natkit MAILBOXES ME PEER OFFER CONFIGURATION

CONFIGURATION is JSON: an RTCConfiguration as the page gets it; ``config``, for natkit, what else
its agent's Config is told; ``only``, a text: candidates without it are neither told nor taken.
Prints a JSON object like the one that the page reports.  It stays connected, for the page to get
everything, until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from typing import Any

import aiortc
import aiortc.rtcicetransport
from aiortc.sdp import candidate_from_sdp

MESSAGES = 200
PATIENCE = 25


def use_natkit(config: dict[str, Any]) -> None:
    """Have aiortc run on natkit's agent."""
    import ice
    import ice.adapters.aiortc

    if "mdns" in config:
        config["mdns"] = ice.Mdns(config["mdns"])
    ice.adapters.aiortc.install(ice.Config(**config))


class Mailboxes:
    def __init__(self, url: str) -> None:
        self._url = url

    async def put(self, box: str, value: object) -> None:
        request = urllib.request.Request(f"{self._url}/box/{box}", json.dumps(value).encode())
        await asyncio.to_thread(lambda: urllib.request.urlopen(request).close())

    async def take(self, box: str) -> Any:
        def get() -> bytes:
            with urllib.request.urlopen(f"{self._url}/box/{box}") as answer:
                found: bytes = answer.read()
                return found

        while not (body := await asyncio.to_thread(get)):
            pass
        return json.loads(body)


class Talk:
    def __init__(
        self, mailboxes: Mailboxes, me: str, peer: str, rtc: aiortc.RTCConfiguration, only: str
    ) -> None:
        self.mailboxes, self.me, self.peer, self.only = mailboxes, me, peer, only
        self.connection = aiortc.RTCPeerConnection(rtc)
        self.received: list[str] = []
        self.told: list[str] = []
        """The page's candidates."""
        self.own: list[str] = []
        self.finished = asyncio.Event()
        self.connection.on("datachannel", self.on_channel)
        self.connection.on("iceconnectionstatechange", self.on_state)

    def on_state(self) -> None:
        if self.connection.iceConnectionState == "failed":
            self.finished.set()

    def on_channel(self, channel: Any) -> None:
        channel.on("message", self.on_message)
        if channel.readyState == "open":
            self.send(channel)
        else:
            channel.on("open", lambda: self.send(channel))

    def send(self, channel: Any) -> None:
        for n in range(MESSAGES):
            channel.send(f"{self.me} {n} {'x' * (n * 5)}")

    def on_message(self, text: str) -> None:
        self.received.append(text)
        if len(self.received) == MESSAGES:
            self.finished.set()

    async def signal(self, *, offers: bool) -> None:
        if offers:
            self.on_channel(self.connection.createDataChannel("chat"))
            await self.describe()
        async for letter in self.letters():
            if description := letter.get("description"):
                await self.connection.setRemoteDescription(
                    aiortc.RTCSessionDescription(**description)
                )
                if not offers:
                    await self.describe()
            elif (text := letter["candidate"]["candidate"]) and self.only in text:
                self.told.append(text)
                candidate = candidate_from_sdp(text.removeprefix("candidate:"))
                candidate.sdpMid = letter["candidate"]["sdpMid"]
                await self.connection.addIceCandidate(candidate)

    async def letters(self) -> Any:
        """Yield what the page tells, candidates after the description that they belong to."""
        early: list[Any] | None = []
        while True:
            letter = await self.mailboxes.take(self.me)
            if early is not None and "candidate" in letter:
                early.append(letter)
                continue
            yield letter
            for each in early or ():
                yield each
            early = None

    async def describe(self) -> None:
        """Make the local description, all candidates in it, and send it."""
        offers = self.connection.signalingState == "stable"
        make = self.connection.createOffer if offers else self.connection.createAnswer
        await self.connection.setLocalDescription(await make())
        description = self.connection.localDescription
        lines = description.sdp.splitlines(keepends=True)
        self.own = [line for line in lines if line.startswith("a=candidate:") and self.only in line]
        sdp = "".join(
            line for line in lines if line in self.own or not line.startswith("a=candidate:")
        )
        await self.mailboxes.put(self.peer, {"description": {"type": description.type, "sdp": sdp}})

    def result(self) -> dict[str, object]:
        expected = [f"{self.peer} {n} {'x' * (n * 5)}" for n in range(MESSAGES)]
        return {
            "right": self.received == expected,
            "messages": len(self.received),
            "candidates": {"page": self.told, "program": self.own},
            "state": self.connection.iceConnectionState,
        }


async def main() -> dict[str, object]:
    kind, url, me, peer, offer, text = sys.argv[1:]
    configuration = json.loads(text)
    if kind == "natkit":
        use_natkit(configuration.get("config", {}))
    servers = [aiortc.RTCIceServer(**server) for server in configuration["iceServers"]]
    policy = configuration.get("iceTransportPolicy", "all")
    rtc = aiortc.RTCConfiguration(
        servers, iceTransportPolicy=aiortc.rtcconfiguration.RTCIceTransportPolicy(policy)
    )
    talk = Talk(Mailboxes(url), me, peer, rtc, configuration.get("only", ""))
    signalling = asyncio.create_task(talk.signal(offers=offer == "1"))
    ended = asyncio.create_task(talk.finished.wait())
    await asyncio.wait({signalling, ended}, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
    if signalling.done():
        signalling.result()
    signalling.cancel()
    ended.cancel()
    if talk.received:
        await asyncio.to_thread(sys.stdin.read)
    result = talk.result()
    if kind == "natkit" and not result["right"]:
        sctp: Any = talk.connection.sctp
        print(sctp.transport.transport._connection.agent.explain().text(), file=sys.stderr)
    await talk.connection.close()
    return result


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
