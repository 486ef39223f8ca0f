"""The report as a live page, for this machine alone: ``http://127.0.0.1:PORT/``."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from analysis.errors import InputError

TRIED = 20  # ports from the first one on
WAITING = b'<!doctype html><meta http-equiv="refresh" content="3"><title>Report</title><p>No report yet; it will come.'


class LivePage:
    """Serves one file, and what there is to say of it; a page asks for that every two seconds (page/report.js).

    Attributes:
        state: a JSON mapping, under /state; replaced as a whole.
    """

    def __init__(self, path: Path, port: int) -> None:
        """Raises InputError where no port from `port` on is free."""
        self.path, self.state = path, dict[str, Any]()
        for number in range(port, port + TRIED):
            try:
                self._server = ThreadingHTTPServer(("127.0.0.1", number), self._handler())
            except (OSError, OverflowError):
                continue
            break
        else:
            raise InputError(f"port={port}: no port from there on to {port + TRIED - 1} is free; port=0 serves none")
        self.address = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
                if host not in ("127.0.0.1", "localhost"):  # a name that another site points here
                    self.send_error(403)
                elif self.path == "/state":
                    self._answer(json.dumps(page.state).encode(), "application/json")
                elif self.path == "/":
                    there = page.path.exists()
                    self._answer(page.path.read_bytes() if there else WAITING, "text/html; charset=utf-8")
                else:
                    self.send_error(404)

            def _answer(self, body: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        return Handler
