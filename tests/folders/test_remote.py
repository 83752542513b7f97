"""Operations on remote folders that fail."""

import pytest

from lfdm.errors import UserError
from lfdm.folders import remote


class NoCredentialsError(Exception):
    """Named as that of botocore."""


@pytest.mark.parametrize(
    ("error", "cause", "tries"),
    [
        (OSError("the connection broke"), None, remote.TRIES),
        (PermissionError("403"), None, 1),
        (UserError("s3://clips: denied"), PermissionError("403"), 1),
        (UserError("s3://clips: NoCredentialsError"), NoCredentialsError(), 1),
    ],
)
def test_only_what_can_pass_is_tried_again(
    error: Exception, cause: Exception | None, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0)
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise error from cause

    with pytest.raises(type(error)):
        remote.retried(fail)
    assert len(calls) == tries
