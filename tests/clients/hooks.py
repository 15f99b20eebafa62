"""Hooks of schemathesis for scripts/test-clients --fuzz: asks for things that are there.

Of random ids none is. Half of the reads that have a right id get that of a study that has ended, of one of its probes, or of
a data set, in the project that has them. Half of the right heartbeats and completions get a lease that holds a probe, and
half of the right revisions and deletions a study that can be revised or deleted. Wrong requests stay wrong, and so do chains of them: what one made the
next uses.
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode

KNOWN = {"studies": os.environ["STUDY"], "probes": os.environ["PROBE"], "datasets": os.environ["DATASET"]}


PROJECT = re.compile(r"[A-Za-z0-9._-]{1,64}")
held: dict[str, Any] = {}


def call(method: str, path: str, body: Any = None) -> tuple[Any, Any]:
    """The headers and the JSON of an answer."""
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(os.environ["URL"] + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.headers, json.load(answer)
    except urllib.error.HTTPError as error:
        # What it says is lost otherwise.
        raise RuntimeError(f"{method} {path} was answered {error.code}: {error.read().decode()}") from error


def new_study(model: str = "") -> str:
    """A study like no other, planned for a device of this model; its path. Without one, for a model that no worker has:
    what claims made at random say of a device (no memory, say) is told to those who plan for it."""
    model = model or f"fuzzed {uuid.uuid4()}"
    study = {
        "workload": {"dataset": {"builtin": "digits"}},
        "device": {"backend": "cpu", "model": model, "threads": 1, "memory_budget_bytes": 1 << 30},
        "seed": uuid.uuid4().int % 2**32,
    }
    return f"/v1/studies/{call('POST', '/v1/studies', study)[1]['id']}"


def lease() -> dict[str, Any]:
    """A lease that holds a probe: the one of the last heartbeat, or a new one."""
    # A lease that nobody prolongs runs out.
    if time.monotonic() - held.get("since", 0.0) > 15:
        model = f"fuzzed {uuid.uuid4()}"
        new_study(model)
        size = {"memory_bytes": 1 << 33, "available_bytes": 1 << 33, "threads": 1, "slots": 1}
        # A host of its own each: what ended wrongly must not stand in the way.
        device = {"host": str(uuid.uuid4()), "hardware": "cpu", "backend": "cpu", "model": model, **size}
        claim = {"lease_id": str(uuid.uuid4()), "worker": "hook", "protocol": 1, "device": device, "runners": ["burn"], "wait_secs": 5}
        held.update(call("POST", "/v1/leases", claim)[1], since=time.monotonic())
    return held


def asks_for_what_is_there(case: Any) -> bool:
    """By half, from what was made at random."""
    number = uuid.UUID(str(case.path_parameters["id"])).int
    return number % 2 == 1


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Changes what is sent, never from right to wrong or from wrong to right."""
    phase = case.meta.phase.name.value.lower() if case.meta is not None else ""
    kind = re.match(r"/v1/(\w+)/\{id\}", case.operation.path)
    if kind is None or phase == "stateful":
        return
    try:
        if not asks_for_what_is_there(case):
            return
    except (KeyError, TypeError, ValueError):
        return
    is_right = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
    name = case.operation.definition.raw.get("operationId")
    if case.method.upper() == "GET" and kind[1] in KNOWN:
        case.path_parameters["id"] = KNOWN[kind[1]]
    elif name in ("send_heartbeat", "complete_lease") and is_right and isinstance(case.body, dict):
        found = lease()
        case.path_parameters["id"] = found["lease_id"]
        case.body = {**case.body, "probe_id": found["probe_id"], "attempt": found["attempt"]}
        if name == "complete_lease":
            held.clear()
    elif name == "update_study_definition" and is_right:
        path = new_study()
        case.path_parameters["id"] = path.rsplit("/", 1)[1]
        case.headers = {**(case.headers or {}), "If-Match": call("GET", f"{path}/definition")[0]["ETag"]}
    elif name == "delete_study" and is_right:
        # Only what has ended can be deleted.
        path = new_study()
        call("POST", f"{path}/cancel")
        case.path_parameters["id"] = path.rsplit("/", 1)[1]
    else:
        return
    project = (case.headers or {}).get("Trialhead-Project")
    if isinstance(project, str) and PROJECT.fullmatch(project):
        case.headers["Trialhead-Project"] = "default"
