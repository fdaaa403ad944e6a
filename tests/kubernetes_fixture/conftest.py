"""The widget of kube_fixture.widget, ready to be created."""

from __future__ import annotations

from functools import partial

import pytest

from kube_fixture import Kube
from kube_fixture.widget import CRD, Widget, make_widget


@pytest.fixture
async def widget(kube: Kube) -> Widget:
    """Makes widgets to send; their resource is served."""
    await kube.install_crd(CRD)
    return partial(make_widget, kube.namespace)
