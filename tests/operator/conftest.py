"""A control plane with our CRD, and a node for its scheduler."""

from collections.abc import AsyncIterator

import pytest

from kube_fixture import Kube, add_node
from octavo_operator.api.crd import custom_resource_definition


@pytest.fixture
async def octavo(kube: Kube) -> Kube:
    """The test's client, on an API server that knows LLMDeployments."""
    await kube.install_crd(custom_resource_definition())
    return kube


@pytest.fixture
async def node(kube: Kube) -> AsyncIterator[str]:
    """The name of a node with eight H100, for as long as the test runs: a real scheduler gives pods to it."""
    made = await add_node(kube, f"node-{kube.namespace}", labels={"nvidia.com/gpu.product": "H100"})
    yield made["metadata"]["name"]
    await kube.delete(made)
