"""Stands in for `octavo serve` where the supervisor is tested: the same lines, the same routes, and faults on demand.

Its `engine` is a child process that ignores SIGTERM, so that a supervisor that stops leaders only leaves it behind.

    python fake_replica.py FAULT --port N [--metrics FILE]

FAULT: "none"; "crash" (an error line, exit 3); "stubborn" (ignores SIGTERM); "deaf" (never ready); "chatty" (fills its
pipes, then is ready); "port-thief" (cannot bind any port but 0). POST /die exits 7; POST /unready makes /ready say 503.
/metrics is FILE as it is when it is asked for.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """`/ready` answers 503 with a phase twice, then 200."""

    asked = 0
    fault = "none"
    unready = False
    metrics: Path | None = None

    def do_GET(self) -> None:
        if self.path == "/metrics" and Handler.metrics is not None:
            self._answer_with(200, Handler.metrics.read_bytes())
            return
        Handler.asked += 1
        ready = Handler.asked > 2 and Handler.fault != "deaf" and not Handler.unready
        body = {"status": "ready"} if ready else {"status": "starting", "phase": f"phase {Handler.asked}"}
        self._answer(200 if ready else 503, body)

    def do_POST(self) -> None:
        if self.path == "/unready":
            Handler.unready = True
            self._answer(200, {})
        else:
            self._answer(200, {})
            os._exit(7)

    def _answer(self, status: int, body: dict[str, str]) -> None:
        self._answer_with(status, json.dumps(body).encode())

    def _answer_with(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    """Listen as told and serve until SIGTERM."""
    Handler.fault, port = sys.argv[1], int(sys.argv[sys.argv.index("--port") + 1])
    if "--metrics" in sys.argv:
        Handler.metrics = Path(sys.argv[sys.argv.index("--metrics") + 1])
    if Handler.fault == "crash":
        print("octavo: --max-model-len 9999999 is more than the model has", file=sys.stderr)
        sys.exit(3)
    if Handler.fault == "chatty":
        for _ in range(4000):
            print("x" * 100)
        print("y" * 200_000, file=sys.stderr)
    engine = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
    subprocess.Popen([sys.executable, "-I", "-S", "-c", engine])
    if Handler.fault == "port-thief" and port != 0:
        sys.exit(f"octavo: port {port} is taken")
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    if Handler.fault == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"octavo: listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever(poll_interval=0.02)


if __name__ == "__main__":
    main()
