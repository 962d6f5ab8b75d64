"""Standard input on Ray goes to whoever has the encoding worker's place."""

import os
import socket
import threading

from launch.ray import _feed


def test_who_takes_the_place_of_one_that_is_lost_is_given_what_comes():
    reading, writing = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener, os.fdopen(reading, "rb", buffering=0) as stream:
        thread = threading.Thread(target=_feed, args=(listener, stream), daemon=True)
        thread.start()
        with socket.create_connection(listener.getsockname()) as first:
            os.write(writing, b"one")
            assert first.recv(16) == b"one"
        with socket.create_connection(listener.getsockname()) as second:
            os.write(writing, b"two")
            assert second.recv(16) == b"two"
            os.close(writing)
            assert second.recv(16) == b""
        with socket.create_connection(listener.getsockname()) as third:
            assert third.recv(16) == b"", "this is the end for all who come"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        assert not thread.is_alive()
