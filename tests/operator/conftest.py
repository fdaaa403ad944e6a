"""A control plane with our CRD, and an operator of the test's own on it."""

import pytest

from kube_fixture import Kube
from octavo_operator.api.crd import custom_resource_definition


@pytest.fixture
async def octavo(kube: Kube) -> Kube:
    """The test's client, on an API server that knows LLMDeployments."""
    await kube.install_crd(custom_resource_definition())
    return kube
