"""Where results may be written."""

from pathlib import Path

import pytest

from lfdm.errors import UserError
from lfdm.evaluation.report.files import check_report_folder


@pytest.mark.parametrize("name", ["clips.csv", "model_index.json", "checkpoints"])
def test_results_are_not_mixed_with_what_is_evaluated(tmp_path: Path, name: str) -> None:
    check_report_folder(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"holds {name}; choose another --out"):
        check_report_folder(tmp_path)
