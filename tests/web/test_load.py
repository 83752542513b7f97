"""Thirty users for two minutes."""

import pytest

from benchmarks.serving.load import measure


@pytest.mark.slow
def test_thirty_users_for_two_minutes_on_the_bundled_model() -> None:
    result = measure(num_users=30, seconds=120, queue_size=32)
    assert result["errors"] == [], result["server_log"]
    assert result["videos"] > 30
    assert 0.95 < result["memory_mb"]["ratio"] < 1.05, result["memory_mb"]
    one_more = result["one_too_many"]
    assert one_more["waiting"] == 32
    assert one_more["status"] == 503
    assert one_more["message"] == "busy: 32 requests are waiting; try again in a minute"
    assert one_more["after_cancelling"] == "complete"
    files = result["files"]
    assert files["after_load"] > files["start"] == files["end"]
    assert files["left_after_shutdown"] == 0
