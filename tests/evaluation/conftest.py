import os
from typing import NamedTuple

import pytest

from mmcoref.data.file import read_records
from mmcoref.data.record import Record


class Published(NamedTuple):
    train: tuple[Record, ...]
    test: tuple[Record, ...]


@pytest.fixture(scope="session")
def published() -> Published:
    """The published file, in the published split; the anchors in these tests were computed from it independently."""
    path = os.environ.get("MMCOREF_DATA")
    if not path:
        pytest.skip("MMCOREF_DATA does not name the published file")
    records = read_records(path).records
    n_train = int(0.8 * len(records))
    return Published(records[:n_train], records[n_train:])
