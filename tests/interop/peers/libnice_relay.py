"""Two libnice agents that may use nothing but a relay: HOST[,HOST] PORT USER PASSWORD KIND.

Of two hosts each side has one.  Run with the system's Python, which has the introspection of
libnice and GStreamer: libnice's own function to receive cannot be called through introspection, its
GStreamer element gives the same.
KIND is udp, tcp or tls.  Prints one JSON object: whether what each agent received is what the other
sent, in any order, and the types of the selected candidates.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import gi  # type: ignore[import-not-found]

gi.require_version("Nice", "0.1")
gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst, Nice  # type: ignore[import-not-found]  # noqa: E402

hosts, port, user, password, kind = sys.argv[1:6]
RELAYS = {
    "udp": Nice.RelayType.UDP,
    "tcp": Nice.RelayType.TCP,
    "tls": Nice.RelayType.TLS,
}
MESSAGES = 20

Gst.init(None)
loop = GLib.MainLoop()
result: dict[str, object] = {}


class Side:
    def __init__(self, name: str, controlling: bool) -> None:
        self.name = name
        self.agent = Nice.Agent.new(loop.get_context(), Nice.Compatibility.RFC5245)
        self.agent.set_property("controlling-mode", controlling)
        self.agent.set_property("upnp", False)
        self.agent.set_property("force-relay", True)
        self.agent.set_property("ice-tcp", False)
        self.stream = self.agent.add_stream(1)
        host = hosts.split(",")[0 if controlling else -1]
        self.agent.set_relay_info(self.stream, 1, host, int(port), user, password, RELAYS[kind])
        self.received: list[str] = []
        self.pair: list[str] = []
        self.gathered = False
        self.peer: Side | None = None
        self.agent.connect("candidate-gathering-done", self.on_gathered)
        self.agent.connect("component-state-changed", self.on_state)
        self.agent.connect("new-selected-pair-full", self.on_pair)
        self.pipeline = Gst.parse_launch(
            "nicesrc name=in ! appsink name=out emit-signals=true sync=0"
        )
        source = self.pipeline.get_by_name("in")
        source.set_property("agent", self.agent)
        source.set_property("stream", self.stream)
        source.set_property("component", 1)
        self.pipeline.get_by_name("out").connect("new-sample", self.on_sample)
        self.pipeline.set_state(Gst.State.PLAYING)

    def start(self) -> None:
        if not self.agent.gather_candidates(self.stream):
            fail("gather_candidates failed")

    def on_gathered(self, *_: object) -> None:
        self.gathered = True
        assert self.peer is not None
        if self.peer.gathered:
            for one, other in ((self, self.peer), (self.peer, self)):
                _, ufrag, secret = other.agent.get_local_credentials(other.stream)
                one.agent.set_remote_credentials(one.stream, ufrag, secret)
                candidates = other.agent.get_local_candidates(other.stream, 1)
                if not candidates:
                    fail(f"{other.name} gathered no relayed candidate")
                one.agent.set_remote_candidates(one.stream, 1, candidates)

    def on_pair(
        self, _agent: object, _stream: int, _component: int, local: Any, remote: Any
    ) -> None:
        self.pair = [local.type.value_nick, remote.type.value_nick]

    def on_state(self, _agent: object, _stream: int, _component: int, state: int) -> None:
        if state == Nice.ComponentState.READY:
            for n in range(MESSAGES):
                text = f"{self.name} {n} ".encode() + b"x" * (n * 50)
                self.agent.send(self.stream, 1, len(text), text.decode())
        elif state == Nice.ComponentState.FAILED:
            fail(f"{self.name}: ICE failed")

    def on_sample(self, sink: Any) -> Any:
        buffer = sink.emit("pull-sample").get_buffer()
        octets = buffer.extract_dup(0, buffer.get_size())
        GLib.idle_add(self.on_data, octets)  # this is a thread of GStreamer's
        return Gst.FlowReturn.OK

    def on_data(self, octets: bytes) -> None:
        self.received.append(octets.decode())
        assert self.peer is not None
        if len(self.received) >= MESSAGES and len(self.peer.received) >= MESSAGES:
            for side in (self, self.peer):
                result[side.name] = {
                    "right": sorted(side.received) == sorted(side.expected()),
                    "pair": side.pair,
                }
            loop.quit()

    def expected(self) -> list[str]:
        assert self.peer is not None
        return [f"{self.peer.name} {n} " + "x" * (n * 50) for n in range(MESSAGES)]


def fail(why: str) -> None:
    result["failed"] = why
    loop.quit()


def give_up() -> None:
    fail(f"nothing within 20 s: {len(a.received)} and {len(b.received)} messages came")


a, b = Side("a", True), Side("b", False)
a.peer, b.peer = b, a
GLib.timeout_add_seconds(20, give_up)
a.start()
b.start()
loop.run()
print(json.dumps(result))
