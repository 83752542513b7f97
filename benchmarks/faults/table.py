"""Render docs/reliability.md from the stored campaigns, failures included."""

from pathlib import Path

from benchmarks.experiment.tables import ROOT, table
from benchmarks.faults.campaign import FAULTS_DIR, Campaign

DOCUMENT = ROOT / "docs" / "reliability.md"
MAX_FAILURES = 20
"""Failures of one campaign shown in the document; the JSON has all."""
HEAD = """# Reliability

Rendered from benchmarks/results/faults/*.json by `python -m benchmarks.faults table`. Each campaign tries one kind of fault many
times and counts the cases in which the promise was broken. Short versions of the campaigns are tests (`make test-all`).
[log.md](log.md) lists the faults that they found.
"""


def render(campaigns: list[Campaign]) -> str:
    """Render the document."""
    rows = [[one.name, one.promise, one.aim, str(one.counts.total()), str(len(one.failures)), one.date] for one in campaigns]
    summary = table(["campaign", "promise", "aim", "cases", "failures", "date"], rows)
    return "\n".join([HEAD, summary, *(f"## {one.name}\n\n{render_one(one)}" for one in campaigns)])


def render_one(campaign: Campaign) -> str:
    """Render the counts, figures, failures and notes of a campaign."""
    time = f"{campaign.seconds / 60:.1f} min" if campaign.seconds >= 60 else f"{campaign.seconds:.0f} s"
    where = f"{time} on {campaign.machine}, commit {campaign.commit}, {campaign.date}"
    parts = [f"{campaign.promise} Aim: {campaign.aim}.\n\n`{campaign.command}` ({where})\n"]
    parts.append(table(["cases", "tried"], [[_cell(kind), str(count)] for kind, count in campaign.counts.items()]))
    if campaign.figures:
        parts.append(table(["figure", "value"], [[_cell(name), _cell(str(value))] for name, value in campaign.figures.items()]))
    if campaign.failures:
        shown = [[_cell(failure.case), _cell(failure.seen)] for failure in campaign.failures[:MAX_FAILURES]]
        parts.append(f"**{len(campaign.failures)} failed**\n\n" + table(["case", "seen"], shown))
        if len(shown) < len(campaign.failures):
            parts.append(f"The other {len(campaign.failures) - len(shown)} are in the JSON.\n")
    else:
        parts.append("No failures.\n")
    parts += [f"{note}\n" for note in campaign.notes]
    return "\n".join(parts)


def _cell(text: str) -> str:
    """Return text that stays in its cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def read_campaigns(folder: Path = FAULTS_DIR) -> list[Campaign]:
    """Read the stored campaigns in order of name."""
    return [Campaign.load(path) for path in sorted(folder.glob("*.json"))]


def write() -> None:
    """Write docs/reliability.md."""
    DOCUMENT.write_text(render(read_campaigns()))
