"""Runs a study through the client that openapi-python-client makes of openapi/openapi.json. For scripts/test-clients.

    submit.py http://127.0.0.1:8080 [TOKEN]
"""

import sys
import time
import uuid
from http import HTTPStatus

from trialhead_client import AuthenticatedClient, Client
from trialhead_client.api.answers import list_recommendations
from trialhead_client.api.studies import create_study, get_study, list_studies
from trialhead_client.models.backend import Backend
from trialhead_client.models.batch_sizes_request import BatchSizesRequest
from trialhead_client.models.budget import Budget
from trialhead_client.models.device_request import DeviceRequest
from trialhead_client.models.digits_builtin_dataset import DigitsBuiltinDataset
from trialhead_client.models.digits_builtin_dataset_builtin import (
    DigitsBuiltinDatasetBuiltin,
)
from trialhead_client.models.grade import Grade
from trialhead_client.models.mlp_model import MlpModel
from trialhead_client.models.mlp_model_family import MlpModelFamily
from trialhead_client.models.problem import Problem
from trialhead_client.models.problem_code import ProblemCode
from trialhead_client.models.question import Question
from trialhead_client.models.recommendations import Recommendations
from trialhead_client.models.study import Study
from trialhead_client.models.study_request import StudyRequest
from trialhead_client.models.study_state import StudyState
from trialhead_client.models.workload_request import WorkloadRequest
from trialhead_client.types import UNSET, Unset

PATIENCE_SECS = 900.0
ENDED = (StudyState.SUCCEEDED, StudyState.FAILED, StudyState.CANCELLED)


def definition(smallest: int = 64) -> StudyRequest:
    """The digits, two batch sizes, two questions: less than half a minute."""
    return StudyRequest(
        name="digits, by a Python client",
        workload=WorkloadRequest(
            dataset=DigitsBuiltinDataset(builtin=DigitsBuiltinDatasetBuiltin.DIGITS),
            model=MlpModel(family=MlpModelFamily.MLP, hidden=[32]),
        ),
        batch_sizes=BatchSizesRequest(min_=smallest, max_=128),
        device=DeviceRequest(backend=Backend.CPU, memory_budget_bytes=2**30),
        questions=[Question.FEASIBLE_BATCH_SIZES, Question.THROUGHPUT],
        budget=Budget(device_secs=15.0, probes=40),
        reuse=False,
        seed=7,
    )


def expect(holds: bool, what: object) -> None:
    """As assert, but also under python -O."""
    if not holds:
        sys.exit(f"submit.py: not as expected: {what}")


def wait_for_end(client: AuthenticatedClient, study: Study) -> Study:
    """Asks again with the ETag of the answer before: each answer comes when something is new."""
    began, etag, unchanged = time.monotonic(), "", 0
    while study.state not in ENDED:
        expect(time.monotonic() - began < PATIENCE_SECS, f"an end in {PATIENCE_SECS} s: {study.state}")
        answer = get_study.sync_detailed(
            study.id, client=client, wait_secs=10.0, if_none_match=etag or UNSET
        )
        if answer.status_code == HTTPStatus.NOT_MODIFIED:
            unchanged += 1
            continue
        if not isinstance(answer.parsed, Study):
            sys.exit(f"submit.py: no study: {answer.parsed}")
        study, etag = answer.parsed, answer.headers["etag"]
    print(f"   {study.state}: {study.ended_detail} ({unchanged} times nothing new in 10 s)")
    return study


def refused(client: AuthenticatedClient) -> None:
    """A study that cannot be run comes back with a pointer to what is wrong."""
    answer = create_study.sync_detailed(client=client, body=definition(smallest=0))
    problem = answer.parsed
    expect(answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY, answer)
    if not isinstance(problem, Problem) or isinstance(problem.errors, Unset):
        sys.exit(f"submit.py: no typed problem: {problem}")
    expect(problem.code == ProblemCode.INVALID_STUDY, problem.code)
    expect([it.pointer for it in problem.errors] == ["/batch_sizes/min"], problem.errors)
    print(f"   refused: {problem.errors[0].pointer}: {problem.errors[0].detail}")


def pages(client: AuthenticatedClient) -> list[uuid.UUID]:
    """Every study, one on a page."""
    ids: list[uuid.UUID] = []
    token: str | Unset = UNSET
    while True:
        page = list_studies.sync(client=client, page_size=1, page_token=token)
        if page is None or isinstance(page, Problem):
            sys.exit(f"submit.py: no page: {page}")
        expect(len(page.items) <= 1, page)
        ids += [item.id for item in page.items]
        if not isinstance(page.next_page_token, str):
            return ids
        token = page.next_page_token


def recommendations(client: AuthenticatedClient, study: Study) -> None:
    """What is recommended, and 304 for whoever has it."""
    answer = list_recommendations.sync_detailed(study.id, client=client)
    if not isinstance(answer.parsed, Recommendations):
        sys.exit(f"submit.py: no recommendations: {answer.parsed}")
    expect(len(answer.parsed.items) >= 2, "at least one recommendation for each question")
    for item in answer.parsed.items:
        print(f"   {item.topic} ({item.confidence.grade}, {len(item.evidence)} probes): {item.summary}")
        expect(isinstance(item.confidence.grade, Grade), item.confidence)
        expect(item.study_id == study.id and not item.stale, item.id)
        expect(bool(item.summary and item.confidence.because and item.evidence), item)
        expect(item.value.to_dict() != {}, item.value)
        expect(not item.additional_properties, item.additional_properties)
    again = list_recommendations.sync_detailed(
        study.id, client=client, if_none_match=answer.headers["etag"]
    )
    expect(again.status_code == HTTPStatus.NOT_MODIFIED and again.content == b"", again)
    print("   the same again: 304")


def main() -> None:
    """Everything in turn."""
    url, token = sys.argv[1], (sys.argv[2:] or [""])[0]
    # A generated client makes operations with a scope take an AuthenticatedClient. Without a prefix and a token the
    # header would be empty, so a service that wants none gets a plain one, which has the same methods.
    client: AuthenticatedClient
    if token:
        client = AuthenticatedClient(base_url=url, token=token, timeout=None)
    else:
        client = Client(base_url=url, timeout=None)  # type: ignore[assignment]
    key = str(uuid.uuid4())
    first = create_study.sync_detailed(client=client, body=definition(), idempotency_key=key)
    expect(first.status_code == HTTPStatus.ACCEPTED, first)
    again = create_study.sync_detailed(client=client, body=definition(), idempotency_key=key)
    if not isinstance(first.parsed, Study) or not isinstance(again.parsed, Study):
        sys.exit(f"submit.py: no study: {first.parsed} {again.parsed}")
    expect(first.parsed.id == again.parsed.id, "one study for one key")
    expect(again.headers.get("idempotency-replayed") == "true", again.headers)
    expect("idempotency-replayed" not in first.headers, first.headers)
    print(f"   accepted: {first.parsed.id}, and the same for the same key")
    refused(client)
    study = wait_for_end(client, first.parsed)
    expect(study.state == StudyState.SUCCEEDED, study)
    recommendations(client, study)
    ids = pages(client)
    expect(study.id in ids and len(set(ids)) == len(ids), ids)
    print(f"   {len(ids)} pages of one study each")
    print("PYTHON CLIENT: fine")


if __name__ == "__main__":
    main()
