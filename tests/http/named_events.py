# SPDX-License-Identifier: Apache-2.0
"""Streams whose events have names: those of the Responses and of the Messages API."""
import contextlib
import http.client
import json

from harness import PATIENCE


def named_events(address: str, path: str, body: dict, at=None, then=None, headers: dict | None = None) -> list:
    """The events' JSON, each checked against its name; `then()` is called behind event number `at`."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
        connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert response.getheader("content-type").startswith("text/event-stream")
        events = []
        while line := response.readline():
            if line.startswith(b":"):
                assert response.readline() == b"\n"
                continue
            assert line.startswith(b"event: "), line
            data = response.readline()
            assert data.startswith(b"data: "), data
            assert response.readline() == b"\n"
            events.append(json.loads(data[6:]))
            assert events[-1]["type"] == line[7:].decode().strip(), (line, data)
            if len(events) == at:
                then()
        return events
