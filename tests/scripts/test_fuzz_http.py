"""A short run of the fuzzer of the HTTP API, always the same."""

import json

from server_process import run_script

COUNT = 1500


def test_no_spoilt_request_gets_a_wrong_answer() -> None:
    done = run_script(
        "scripts/fuzz/fuzz_http.py", "--count", str(COUNT), "--seed", "20", timeout=600
    )
    assert done.stdout, done.stderr
    *faults, last = map(json.loads, done.stdout.splitlines())
    assert not faults, faults[:5]
    assert (last["count"], last["faults"], done.returncode) == (COUNT, 0, 0), done.stderr
    # It reaches the routes' insides, not only their doors.
    statuses = {int(name.split()[1]) for name in last["mix"] if name.startswith("status")}
    assert {200, 202, 400, 401, 403, 404, 405, 409, 411, 415, 422} <= statuses
