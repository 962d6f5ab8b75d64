"""Another plan, ordered over HTTP: by who knows the server's token, and nobody else."""

import pytest

from serve.problems import Problem
from tests.serve.played import JSON, Gateway, asked

TOKEN = "0123456789abcdef"
KNOWN = JSON | {"Authorization": f"Bearer {TOKEN}"}
PLAN = {"plan": {"workers": 3, "name": "timestep"}}


def order(gateway, headers, body=PLAN):
    return asked(gateway, "POST", "/v1/admin/plan", headers, body)


def test_who_knows_the_token_may(tmp_path):
    gateway = Gateway(tmp_path, token=TOKEN)
    answer = order(gateway, KNOWN)
    assert (answer.status, answer.body) == (200, {"model": "one", "generation": 1})
    assert order(gateway, KNOWN, PLAN | {"model": "two"}).body == {"model": "two", "generation": 2}
    assert gateway.plans == [(PLAN["plan"], None), (PLAN["plan"], "two")]


def test_nobody_else_may(tmp_path):
    gateway = Gateway(tmp_path, token=TOKEN)
    secret = gateway.made().secret
    for headers in (JSON, JSON | {"Authorization": f"Bearer {secret}"}, JSON | {"X-Session-Secret": secret}):
        assert order(gateway, headers).status == 401
    assert gateway.plans == []


def test_where_no_token_is_set_nobody_may(tmp_path):
    gateway = Gateway(tmp_path)
    for headers in (JSON, KNOWN):
        answer = order(gateway, headers)
        assert answer.status == 403 and "serve.token" in answer.body["detail"]
    assert gateway.plans == []


@pytest.mark.parametrize("body", [{}, {"plan": 3}, {"plan": {}, "more": 1}, {"plan": [1]}, {"plan": {}, "model": 1}])
def test_what_is_no_plan_is_refused(tmp_path, body):
    gateway = Gateway(tmp_path, token=TOKEN)
    assert order(gateway, KNOWN, body).status == 422 and gateway.plans == []


def test_a_refusal_of_the_pipelines_is_passed_on(tmp_path):
    gateway = Gateway(tmp_path, token=TOKEN)
    gateway.problem = Problem("unprocessable", "plan.workers=3: has no devices; use fewer")
    answer = order(gateway, KNOWN)
    assert answer.status == 422 and answer.body["detail"].startswith("plan.workers=3")
