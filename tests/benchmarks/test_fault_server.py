"""The campaign against the server, in short."""

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'lfdm[web]'")

from benchmarks.faults.campaign import Campaign
from benchmarks.faults.server import try_requests, try_workers


@pytest.fixture
def campaign() -> Campaign:
    return Campaign(name="server", promise="", aim="")


@pytest.mark.slow
def test_hostile_requests_are_answered_without_errors_of_ours(campaign: Campaign) -> None:
    try_requests(campaign, 60, seed=1)
    assert campaign.failures == []
    assert campaign.counts["hostile requests: mutated bodies"] == 10


@pytest.mark.slow
def test_a_killed_server_is_followed_by_one_that_serves_and_cleans_up(campaign: Campaign) -> None:
    try_workers(campaign)
    assert campaign.failures == []
