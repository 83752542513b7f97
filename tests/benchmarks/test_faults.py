"""The frame of the campaigns: records, rendering, and the stored document."""

from pathlib import Path

import pytest

from benchmarks.faults import __main__ as command
from benchmarks.faults import table
from benchmarks.faults.campaign import MAX_SEEN, Campaign, shorten


@pytest.fixture
def campaign() -> Campaign:
    return Campaign(name="kills", promise="Nothing is lost.", aim="0 lost", notes=["Half was left out."])


def test_a_campaign_counts_cases_and_keeps_failures(campaign: Campaign) -> None:
    assert campaign.expect("train", "kill 1", True)
    assert not campaign.expect("train", "kill 2", False, "a checkpoint is gone")
    with campaign.case("adapt", "kill 3"):
        raise ValueError("no index")
    assert dict(campaign.counts) == {"train": 2, "adapt": 1}
    assert [failure.seen for failure in campaign.failures] == ["a checkpoint is gone", "ValueError: no index"]


def test_a_stored_campaign_is_read_as_it_was(campaign: Campaign, tmp_path: Path) -> None:
    campaign.expect("train", "kill 1", False, "gone")
    campaign.save(tmp_path / "kills.json")
    assert table.read_campaigns(tmp_path) == [campaign]


def test_failures_and_notes_are_rendered(campaign: Campaign) -> None:
    campaign.expect("train", "a | b", False, "two\nlines")
    text = table.render([campaign])
    assert "train: a \\| b" in text
    assert "two lines" in text
    assert "Half was left out." in text
    assert "| kills | Nothing is lost. | 0 lost | 1 | 1 |" in text


def test_long_outputs_keep_beginning_and_end() -> None:
    text = shorten("Traceback" + "x" * 10_000 + "the error")
    assert text.startswith("Traceback")
    assert text.endswith("the error")
    assert len(text) < MAX_SEEN + 20


def test_the_document_is_what_the_stored_campaigns_render_to() -> None:
    assert table.DOCUMENT.read_text() == table.render(table.read_campaigns())


def test_every_campaign_is_described() -> None:
    assert all(f"benchmarks.faults {name} " in (command.__doc__ or "") for name in command.CAMPAIGNS)
