"""The other process of the remote echo: echoes one connection, then exits.

Prints its port. Blocking sockets and nothing else, so that it is never what is measured.
"""

import socket


def main() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    listener.settimeout(30)  # nobody came: the worker is gone
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        data = connection.recv(4096)
        if not data:
            return
        connection.sendall(data)


if __name__ == "__main__":
    main()
