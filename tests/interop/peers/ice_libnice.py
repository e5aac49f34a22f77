"""libnice as a peer of tools/icepeers.py.

Run with the system's Python, which has the introspection of libnice and GStreamer: libnice's own
function to receive cannot be called through introspection, its GStreamer element gives the same.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import gi  # type: ignore[import-not-found]

gi.require_version("Nice", "0.1")
gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst, Nice  # type: ignore[import-not-found]  # noqa: E402

RELAYS = {
    "udp": Nice.RelayType.UDP,
    "tcp": Nice.RelayType.TCP,
    "tls": Nice.RelayType.TLS,
}
TYPES = {
    Nice.CandidateType.HOST: "host",
    Nice.CandidateType.SERVER_REFLEXIVE: "srflx",
    Nice.CandidateType.PEER_REFLEXIVE: "prflx",
    Nice.CandidateType.RELAYED: "relay",
}
TCPTYPES = {
    Nice.CandidateTransport.UDP: None,
    Nice.CandidateTransport.TCP_ACTIVE: "active",
    Nice.CandidateTransport.TCP_PASSIVE: "passive",
    Nice.CandidateTransport.TCP_SO: "so",
}
loop = GLib.MainLoop()


output = threading.Lock()
"""libnice tells some things from threads of its own."""


def tell(event: str, **fields: Any) -> None:
    with output:
        print(json.dumps({"event": event, **fields}), flush=True)


def end_of(candidate: Any) -> dict[str, Any]:
    tcptype = TCPTYPES[candidate.transport]
    return {
        "type": TYPES[candidate.type],
        "transport": "tcp" if tcptype else "udp",
        "address": candidate.addr.dup_string(),
        "port": candidate.addr.get_port(),
        "tcptype": tcptype,
    }


class Peer:
    def start(self, setup: dict[str, Any]) -> None:
        self.name = setup["name"]
        self.connected = False
        self.pair: dict[str, Any] = {}
        options = Nice.AgentOption.ICE_TRICKLE | Nice.AgentOption.REGULAR_NOMINATION
        if setup["lite"]:
            options |= Nice.AgentOption.LITE_MODE
        self.agent = Nice.Agent.new_full(loop.get_context(), Nice.Compatibility.RFC5245, options)
        self.agent.set_property("controlling-mode", setup["controlling"])
        self.agent.set_property("upnp", False)
        self.agent.set_property("force-relay", setup["relay_only"])
        # A relay that is reached by UDP needs UDP, whatever the candidates of this host are.
        self.agent.set_property("ice-udp", "udp" in setup["transports"])
        self.agent.set_property("ice-tcp", "tcp" in setup["transports"])
        if setup["stun"]:
            self.agent.set_property("stun-server", setup["stun"][0])
            self.agent.set_property("stun-server-port", setup["stun"][1])
        self.stream = self.agent.add_stream(1)
        if relay := setup["relay"]:
            address, _, query = relay["url"].partition("?")
            scheme, host, port = address.split(":")
            over = query.removeprefix("transport=") or "udp"
            self.agent.set_relay_info(
                self.stream,
                1,
                host,
                int(port),
                relay["username"],
                relay["password"],
                RELAYS["tls" if scheme == "turns" else over],
            )
        self.agent.connect("new-candidate-full", self.on_candidate)
        self.agent.connect("candidate-gathering-done", self.on_gathered)
        self.agent.connect("component-state-changed", self.on_state)
        self.agent.connect("new-selected-pair-full", self.on_pair)
        self.receive()
        self.tell_credentials()
        if not self.agent.gather_candidates(self.stream):
            tell("failed", why="gather_candidates failed")

    def tell_credentials(self) -> None:
        _, ufrag, secret = self.agent.get_local_credentials(self.stream)
        tell("credentials", ufrag=ufrag, pwd=secret)

    def restart(self) -> None:
        """Begin anew; it keeps the candidates that it has."""
        self.connected = False
        self.agent.restart()
        self.tell_credentials()
        for candidate in self.agent.get_local_candidates(self.stream, 1):
            self.on_candidate(self.agent, candidate)
        self.on_gathered()

    def receive(self) -> None:
        self.pipeline = Gst.parse_launch(
            "nicesrc name=in ! appsink name=out emit-signals=true sync=0"
        )
        source = self.pipeline.get_by_name("in")
        source.set_property("agent", self.agent)
        source.set_property("stream", self.stream)
        source.set_property("component", 1)
        self.pipeline.get_by_name("out").connect("new-sample", self.on_sample)
        self.pipeline.set_state(Gst.State.PLAYING)

    def obey(self, command: dict[str, Any]) -> None:
        match command.pop("do"):
            case "start":
                self.start(command)
            case "remote":
                self.agent.set_remote_credentials(self.stream, command["ufrag"], command["pwd"])
            case "candidate" if command["candidate"] is None:
                self.agent.peer_candidate_gathering_done(self.stream)
            case "candidate":
                candidate = self.agent.parse_remote_candidate_sdp(
                    self.stream, f"a={command['candidate']}"
                )
                if candidate is None:
                    tell("failed", why=f"cannot parse {command['candidate']}")
                else:
                    self.agent.set_remote_candidates(self.stream, 1, [candidate])
            case "send":
                for n in range(command["count"]):
                    text = f"{self.name} {n} {'x' * (n * 50)}"
                    self.agent.send(self.stream, 1, len(text), text)
            case "pair":
                tell("pair", **self.pair)
            case "restart":
                self.restart()
            case "close":
                self.pipeline.set_state(Gst.State.NULL)
                loop.quit()

    def on_candidate(self, _agent: object, candidate: Any) -> None:
        text = self.agent.generate_local_candidate_sdp(candidate)
        tell("candidate", candidate=text.removeprefix("a="))

    def on_gathered(self, *_: object) -> None:
        tell("candidate", candidate=None)

    def on_state(self, _agent: object, _stream: int, _component: int, state: int) -> None:
        if state == Nice.ComponentState.READY and not self.connected:
            self.connected = True
            tell("connected")
        elif state == Nice.ComponentState.FAILED:
            tell("failed", why="ICE failed")

    def on_pair(self, _agent: object, _stream: int, _component: int, local: Any, peer: Any) -> None:
        self.pair = {"local": end_of(local), "remote": end_of(peer)}

    def on_sample(self, sink: Any) -> Any:
        buffer = sink.emit("pull-sample").get_buffer()
        octets = buffer.extract_dup(0, buffer.get_size())
        # This is a thread of GStreamer's; the main loop's is the only one that writes.
        GLib.idle_add(lambda: tell("data", text=octets.decode()))
        return Gst.FlowReturn.OK


def read(peer: Peer) -> None:
    for line in sys.stdin:
        command = json.loads(line)
        GLib.idle_add(lambda command=command: peer.obey(command))
    GLib.idle_add(loop.quit)


if __name__ == "__main__":
    Gst.init(None)
    threading.Thread(target=read, args=(Peer(),), daemon=True).start()
    loop.run()
