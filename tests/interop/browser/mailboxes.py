"""Letter boxes over HTTP for pages that want to find each other: ``mailboxes.py ADDRESS PORT``.

``POST /box/NAME`` puts a message in, ``GET /box/NAME`` waits up to two seconds for one (204: none
came).  Everything else is a file beside this program.
"""

from __future__ import annotations

import queue
import sys
from collections import defaultdict
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BOXES: defaultdict[str, queue.Queue[bytes]] = defaultdict(queue.Queue)


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=str(Path(__file__).parent))

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        BOXES[self.path].put(self.rfile.read(length))
        self.send_response(204)
        self.end_headers()

    def do_GET(self) -> None:
        if not self.path.startswith("/box/"):
            super().do_GET()
            return
        try:
            message = BOXES[self.path].get(timeout=2)
        except queue.Empty:
            message = b""
        self.send_response(200 if message else 204)
        self.send_header("Content-Length", str(len(message)))
        self.end_headers()
        self.wfile.write(message)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
