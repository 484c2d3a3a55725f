"""A server on loopback that answers with any bytes, right or wrong."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

Answer = Callable[[str, dict[str, str]], Iterable[bytes]]  # method, request headers -> what is sent


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """The address of a server whose answers are the given bytes; it closes the connection after each."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                method = self.rfile.readline().decode("latin-1").split(" ")[0]
                headers = {}
                while line := self.rfile.readline().decode("latin-1").strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                for block in answer(method, headers):
                    self.wfile.write(block)
                    self.wfile.flush()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            """Quiet: a client may leave at any time."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/data.zip"
        finally:
            server.shutdown()
            thread.join()


def response(status: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> list[bytes]:
    """A response as the bytes on the wire."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return [f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1"), body]
