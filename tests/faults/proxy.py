"""A proxy in front of a database, which can be gone for a while as a server is: it refuses and cuts what is open."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress

from sqlalchemy import make_url


class Proxy:
    """Passes bytes on in a thread of its own; `go` and `come_back` take it off the network and back to it."""

    def __init__(self, url: str) -> None:
        target = make_url(url)
        self._target = target.host or "127.0.0.1", target.port or 5432
        self._selector = selectors.DefaultSelector()
        self._peer: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._address: tuple[str, int] = self._listener.getsockname()
        host, port = self._address
        #: The URL of the same database by this way.
        self.url = target.set(host=host, port=port).render_as_string(hide_password=False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._bell, self._ring = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._is_gone = self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="proxy")
        self._thread.start()

    def go(self) -> None:
        """Refuse connections and cut those that are open."""
        with self._lock:
            self._is_gone = True
            self._selector.unregister(self._listener)
            self._listener.close()
            for end in list(self._peer):
                self._cut(end)

    def come_back(self) -> None:
        """Listen again."""
        with self._lock:
            self._is_gone = False
            self._listener = socket.create_server(self._address)
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._ring.send(b"!")

    def close(self) -> None:
        """End it for good."""
        self._is_closed = True
        self._ring.send(b"!")
        self._thread.join()
        for end in (*self._peer, self._listener, self._bell, self._ring):
            end.close()
        self._selector.close()

    def _serve(self) -> None:
        while not self._is_closed:
            ready = [key.fileobj for key, _ in self._selector.select()]
            with self._lock:
                for end in ready:
                    if end is self._bell:
                        self._bell.recv(100)
                    elif end is self._listener and not self._is_gone:
                        self._accept()
                    elif isinstance(end, socket.socket) and end in self._peer:
                        self._pass_on(end)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._target)
        for end, other in ((client, server), (server, client)):
            self._peer[end] = other
            self._selector.register(end, selectors.EVENT_READ)

    def _pass_on(self, end: socket.socket) -> None:
        data = b""
        with suppress(OSError):
            data = end.recv(65536)
            if data:
                self._peer[end].sendall(data)
        if not data:
            self._cut(end)

    def _cut(self, end: socket.socket) -> None:
        for one in (end, self._peer.pop(end, end)):
            self._peer.pop(one, None)
            with suppress(KeyError, ValueError):
                self._selector.unregister(one)
            one.close()
