"""The test cluster itself: tests that restart a part of it call `up` while the others work."""

from __future__ import annotations

import time

import pytest

from tests.cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_up_leaves_the_parts_that_run_as_they_are(own_cluster: Cluster) -> None:
    before = own_cluster.processes()
    own_cluster.up()
    time.sleep(3.0)  # a part that watches its configuration ends some time after it was written
    assert own_cluster.dead() == []
    assert own_cluster.processes() == before
