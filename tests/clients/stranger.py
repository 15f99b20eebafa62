"""What somebody would write who has read nothing but the OpenAPI document, with nothing but the standard library.

    stranger.py http://127.0.0.1:8080 [--token TOKEN] [--study JSON] [--expect OUTCOME]

Submits a study, waits for its end and reads what is recommended. Whatever is answered, the answer itself has to say what to
do: send the same again, wait so many seconds, get a token, mend the study. Ends with 1 where one did not, and where the end
is not the expected one: `finished`, or the `code` of the problem that stopped it.
"""

import argparse
import http.client
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from email.message import Message
from typing import Any

PATIENCE_SECS = 900.0
ANSWER_SECS = 30.0


class Stopped(Exception):
    """An answer that says that there is nothing to wait for; the code of its problem."""


class Untold(Exception):
    """An answer that does not say what to do."""


def told(holds: object, what: str) -> None:
    """The answer has to have this."""
    if not holds:
        raise Untold(what)


class Service:
    """The service as the document describes it."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url
        self.headers = {"Accept": "application/json"}
        if token is not None:
            self.headers["Authorization"] = f"Bearer {token}"
        self.deadline = time.monotonic() + PATIENCE_SECS
        self.said = ""

    def pause(self, secs: float, why: str) -> None:
        """Waits, unless that has been done for long enough."""
        told(time.monotonic() + secs < self.deadline, f"no end in {PATIENCE_SECS:.0f} s; last: {why}")
        if why != self.said:
            print(f"   {why}: the same again in {secs:g} s, as often as it takes", flush=True)
        self.said = why
        time.sleep(secs)

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Message, bytes]:
        """Sends it until there is an answer that another try would not change."""
        if body is not None:
            headers = {"Content-Type": "application/json", **(headers or {})}
        while True:
            request = urllib.request.Request(
                self.url + path, body, {**self.headers, **(headers or {})}, method=method
            )
            try:
                with urllib.request.urlopen(request, timeout=ANSWER_SECS) as answer:
                    return answer.status, answer.headers, answer.read()
            except urllib.error.HTTPError as error:
                if error.code == 304:
                    return error.code, error.headers, b""
                try:
                    text = error.read()
                except (OSError, http.client.HTTPException):
                    self.pause(1, "no answer to the end")
                    continue
                self.refused(error.code, error.headers, text)
            except (OSError, http.client.HTTPException) as error:
                # A read, and a POST with an Idempotency-Key, may be sent again.
                self.pause(1, f"no answer ({type(error).__name__})")

    def refused(self, status: int, headers: Message, text: bytes) -> None:
        """Does what a problem says: waits, or stops."""
        kind = headers.get("Content-Type", "")
        told(kind == "application/problem+json", f"{status} is no problem+json but {kind}")
        told(headers.get("X-Request-Id"), f"{status} has no request id to name in a report")
        problem: dict[str, Any] = json.loads(text)
        code = str(problem["code"])
        told(problem["status"] == status and problem["title"] and problem["detail"], f"{problem} is not whole")
        after = headers.get("Retry-After")
        if after is not None:
            told(after.isdigit(), f"Retry-After is {after!r}")
            self.pause(float(after), f"{status} {code}: {problem['detail']}")
            return
        told(status not in (429, 503), f"{status} {code} does not say when to come back")
        print(f"   {status} {code}: {problem['detail']}")
        if status in (401, 403) and code.startswith(("token", "insufficient")):
            challenge = headers.get("WWW-Authenticate", "")
            told(challenge.startswith("Bearer "), f"{status} {code} does not say what kind of token: {challenge!r}")
            told("token" in problem["detail"], f"{problem['detail']} does not speak of the token")
            if code == "insufficient_scope":
                told('scope="' in challenge, f"{challenge} does not say which scope is needed")
            print(f"   to do: get a token; {challenge}")
        elif status == 422:
            told(problem.get("errors"), f"{problem} does not say where it is wrong")
            for error in problem["errors"]:
                told(error["pointer"] is not None and error["detail"], f"{error} says nothing")
                print(f"   to do: {error['pointer'] or '/'}: {error['detail']}")
        raise Stopped(code)


def lose_an_answer(service: Service, body: bytes, key: str) -> None:
    """Sends the request and goes away before the answer comes: nobody knows whether it was done."""
    address = urllib.parse.urlsplit(service.url).netloc
    connection = http.client.HTTPConnection(address, timeout=ANSWER_SECS)
    try:
        headers = {**service.headers, "Content-Type": "application/json", "Idempotency-Key": key}
        connection.request("POST", "/v1/studies", body, headers)
        time.sleep(0.05)
    except OSError:
        pass
    finally:
        connection.close()
    print("   the answer to the first request was lost")


def listen(service: Service, path: str) -> None:
    """Reads the events of the study to their end, however often the stream is cut off."""
    last = ""
    while True:
        headers = {**service.headers, "Accept": "text/event-stream"}
        if last:
            headers["Last-Event-ID"] = last
        request = urllib.request.Request(f"{service.url}{path}/events", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECS) as answer:
                if answer.status == 204:
                    print(f"   heard {last} events, to the last")
                    return
                for line in answer:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    last = value if name == "id" else last
        except urllib.error.HTTPError as error:
            service.refused(error.code, error.headers, error.read())
        except (OSError, http.client.HTTPException) as error:
            service.pause(1, f"no answer ({type(error).__name__})")


def follow(service: Service, path: str) -> dict[str, Any]:
    """Waits for the end with long polls."""
    etag, said = "", ""
    while True:
        headers = {"If-None-Match": etag} if etag else {}
        status, answered, text = service.call("GET", f"{path}?wait_secs=10", headers=headers)
        if status == 304:
            told(time.monotonic() < service.deadline, f"no end in {PATIENCE_SECS:.0f} s")
            continue
        etag = answered.get("ETag", "")
        study: dict[str, Any] = json.loads(text)
        if study["state"] != said:
            said = study["state"]
            print(f"   {said}: {study['ended_detail'] or study['phase']}", flush=True)
        if said in ("succeeded", "failed", "cancelled"):
            told(study["ended_because"] and study["ended_detail"], f"{study} does not say why it ended")
            return study


def submit(service: Service, definition: dict[str, Any], key: str, lost: bool) -> str:
    """Posts the study, again and again with the same key until there is an answer. Its path."""
    body = json.dumps(definition).encode()
    if lost:
        lose_an_answer(service, body, key)
    status, headers, text = service.call("POST", "/v1/studies", body, {"Idempotency-Key": key})
    told(status == 202, f"{status} for a new study")
    told(headers["Location"].endswith(json.loads(text)["id"]), "Location is not the study's")
    print(f"   accepted: {headers['Location']} (replayed: {headers.get('Idempotency-Replayed', 'no')})", flush=True)
    return str(headers["Location"])


def run(service: Service, arguments: argparse.Namespace) -> None:
    """Everything in turn."""
    key = arguments.key or str(uuid.uuid4())
    definition: dict[str, Any] = {
        "name": "digits, by a stranger",
        "labels": {"key": key},
        "workload": {"dataset": {"builtin": "digits"}, "model": {"family": "mlp", "hidden": [16]}},
        "batch_sizes": {"min": 64, "max": 128},
        "device": {"backend": "cpu", "memory_budget_bytes": 1 << 30},
        "questions": ["feasible_batch_sizes", "throughput"],
        "budget": {"device_secs": 12, "probes": 30},
        "reuse": False,
        "seed": arguments.seed,
    }
    if arguments.study is not None:
        definition = json.loads(arguments.study)
    path = submit(service, definition, key, arguments.lose_first_answer)
    if arguments.listen:
        listen(service, path)
    study = follow(service, path)
    told(study["state"] == "succeeded", f"the study {study['state']}: {study['ended_detail']}")
    _, _, text = service.call("GET", f"{path}/recommendations")
    for item in json.loads(text)["items"]:
        print(f"   {item['topic']} ({item['confidence']['grade']}): {item['summary']}")
    # Sent twice or more, done once.
    _, _, text = service.call("GET", f"/v1/studies?label={urllib.parse.quote(f'key:{key}')}")
    made = json.loads(text)["items"]
    told(len(made) == 1, f"{len(made)} studies were made with one key")


def main() -> None:
    """Says how it ended."""
    parser = argparse.ArgumentParser(description="Submits a study, knowing only the OpenAPI document.")
    parser.add_argument("url")
    parser.add_argument("--token")
    parser.add_argument("--study", help="the definition, instead of one of the digits")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--key", help="the Idempotency-Key, instead of a new one")
    parser.add_argument("--expect", default="finished", metavar="OUTCOME")
    parser.add_argument("--lose-first-answer", action="store_true")
    parser.add_argument("--listen", action="store_true", help="also listen to the events")
    arguments = parser.parse_args()
    outcome = "finished"
    try:
        run(Service(arguments.url.rstrip("/"), arguments.token), arguments)
    except Stopped as stopped:
        outcome = str(stopped)
    except Untold as untold:
        sys.exit(f"stranger.py: the answer does not tell what to do: {untold}")
    if outcome != arguments.expect:
        sys.exit(f"stranger.py: {outcome}, where {arguments.expect} was expected")
    print(f"STRANGER: {outcome}")


if __name__ == "__main__":
    main()
