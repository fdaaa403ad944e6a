"""The chart on a real API server: every object is taken, and what RBAC grants is what the operator's work needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from accounts import kubeconfig_of, rbac_verbs
from kube_fixture import ControlPlane, Faults, Kube, add_node, run_deployment
from least_role import LEASE_RULES, RULES
from llm_deployments import IMAGE, RunningOperator, llm_deployment, operating, until_condition
from octavo_chart import COMBINATIONS, Object, Values, part, render, the_one
from octavo_operator.api.crd import custom_resource_definition
from octavo_operator.autoscale.pods import COST, OUR_COST
from octavo_operator.settings import OperatorSettings
from optional_kinds import OPTIONAL, definition, remove

pytestmark = pytest.mark.real

RBAC = "rbac.authorization.k8s.io"
CACHED: Object = {
    "model": {"source": {"huggingFace": {"repo": "org/model"}}},
    "storage": {"cache": {"size": "1Gi"}},
}
# Asked for by admission, and by no request: to own what blocks a deletion, to adopt what exists.
BY_ADMISSION = {("octavo.dev", "llmdeployments/finalizers", "update")}


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
async def test_the_api_server_takes_every_object_with_no_field_unknown(kube: Kube, values: Values) -> None:
    if "namespaces" in values:
        values = values | {"namespaces": [kube.namespace, "default"]}
    if "replicaKey" in values.get("gateway", {}):
        values = values | {"gateway": values["gateway"] | {"replicaKey": {"namespaces": ["default"]}}}
    for item in render(values, kube.namespace, f"r-{kube.namespace}"):
        await kube.apply(item, dry_run=True, manager="helm")


@pytest.mark.parametrize("component", ["operator", "gateway"])
async def test_the_pods_are_admitted_where_pod_security_is_restricted(kube: Kube, component: str) -> None:
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await kube.patch({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": kube.namespace}}, level)
    objects = part(render(COMBINATIONS["gateway"], kube.namespace), component)
    await kube.create(the_one(objects, "ServiceAccount"))
    template = the_one(objects, "Deployment")["spec"]["template"]
    metadata = {"name": component, **template["metadata"]}
    await kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}, dry_run=True)


async def test_who_may_edit_or_view_a_namespace_may_so_its_models(kube: Kube) -> None:
    await kube.install_crd(custom_resource_definition())
    roles = [each for each in render({"userRoles": {"create": True}}, kube.namespace) if each["kind"] == "ClusterRole"]
    for role in roles:
        await kube.create(role)
    try:
        for user, verbs in {"view": {"list"}, "edit": {"list", "create", "patch", "delete"}}.items():
            subject = {"kind": "User", "name": f"{user}-{kube.namespace}", "apiGroup": RBAC}
            binding = {"apiVersion": f"{RBAC}/v1", "kind": "RoleBinding", "metadata": {"name": user}}
            reference = {"apiGroup": RBAC, "kind": "ClusterRole", "name": user}
            await kube.create(binding | {"roleRef": reference, "subjects": [subject]})

            async def may(user: str = subject["name"], verbs: set[str] = verbs) -> bool:
                return {
                    verb for verb in ("list", "create", "patch", "delete") if await allowed(kube, user, verb)
                } == verbs

            await kube.until(may, 30, f"{user} to be allowed {verbs}")
    finally:
        for role in roles:
            await kube.delete(role)


async def allowed(kube: Kube, user: str, verb: str) -> bool:
    attributes = {"namespace": kube.namespace, "group": "octavo.dev", "resource": "llmdeployments", "verb": verb}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {"name": ""}}
    answer = await kube.create(review | {"spec": {"user": user, "resourceAttributes": attributes}})
    return bool(answer["status"]["allowed"])


@pytest.mark.parametrize("scope", ["Namespace", "Cluster"])
async def test_two_operators_do_their_work_one_after_the_other_with_the_rights_that_the_chart_grants(
    scope: str, control_plane: ControlPlane, kube: Kube, tmp_path: Path
) -> None:
    await kube.install_crd(custom_resource_definition())
    kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    granted = [item for item in render({"scope": scope}, kube.namespace, "octavo") if item["kind"] in kinds]
    for item in granted:
        await kube.apply(item)
    node = await add_node(kube, f"node-{kube.namespace}")
    settings = OperatorSettings(
        namespaces=(kube.namespace,) if scope == "Namespace" else (),
        default_image=IMAGE,
        lease_namespace=kube.namespace,
        probe_port=None,
        kubeconfig=await kubeconfig_of(kube, control_plane, "octavo", tmp_path),
        lease_seconds=(3.0, 2.0, 0.2),
    )
    operators = [RunningOperator(settings)]
    try:
        await leading(kube, operators[0])
        operators.append(RunningOperator(settings))
        await kube.create(llm_deployment())
        await until_condition(kube, "Progressing", "True")
        await run_deployment(kube, control_plane, "demo", on_nodes=False)
        await until_condition(kube, "Ready", "True")
        await drifts_and_is_corrected(kube)
        reasons = {
            event["reason"] for event in await kube.list("v1", "Event", fields="involvedObject.kind=LLMDeployment")
        }
        assert "Ready" in reasons
        assert not operators[1].is_leading
        assert operators[0].counted("error") == 0
        operators[0].stop()
        await leading(kube, operators[1])
        await drifts_and_is_corrected(kube)
        assert operators[1].counted("error") == 0
    finally:
        for operator in operators:
            operator.stop()
        for operator in operators:
            assert operator.result.result(timeout=20) == 0
        await kube.delete(node)
        for item in granted:
            if item["kind"].startswith("Cluster"):
                await kube.delete(item)


async def test_every_right_that_the_chart_grants_is_used(
    control_plane: ControlPlane, kube: Kube, faults: Faults
) -> None:
    """Its requests are recorded, and made into the verbs that RBAC would have asked for."""
    await kube.install_crd(custom_resource_definition())
    node = await add_node(kube, f"node-{kube.namespace}")
    lease = {"leader_elect": True, "lease_namespace": kube.namespace, "lease_seconds": (3.0, 2.0, 0.2)}
    optional = [definition(*each) for each in OPTIONAL]
    for each in optional:
        await kube.install_crd(each)
    everything = {
        "networking": {"inferencePool": {"endpointPickerRef": {"name": "epp"}}},
        "observability": {"podMonitor": "Enabled"},
    }
    async with operating(control_plane, kube.namespace, **lease) as operator:
        made = await kube.create(llm_deployment(**everything))
        await kube.create(llm_deployment("cached", **CACHED))
        await until_condition(kube, "ModelCached", "False", "cached")
        await until_condition(kube, "Progressing", "True")
        await run_deployment(kube, control_plane, "demo", on_nodes=False)
        await until_condition(kube, "Ready", "True")
        await drifts_and_is_corrected(kube)
        await takes_a_cost_back(kube)
        assert operator.counted("error") == 0
        await kube.delete(made)
    await kube.delete(node)
    for each in optional:
        await remove(kube, each)
    used = {verb for record in faults.requests for verb in rbac_verbs(record)}
    adopting = {
        (group, resource, "delete")
        for group, resource, verb in used
        if verb == "patch" and "/" not in resource and resource not in {"events", "pods"}
    }
    granted = {
        (group, resource, verb)
        for rule in RULES + LEASE_RULES
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert used | adopting | BY_ADMISSION == granted


async def leading(kube: Kube, operator: RunningOperator) -> None:
    async def leads() -> bool:
        return operator.is_leading

    await kube.until(leads, 30, "the operator to lead")


async def drifts_and_is_corrected(kube: Kube) -> None:
    """Twice: an event that is told again is counted, by whichever operator tells it."""
    before = sum(each["count"] for each in await kube.list("v1", "Event", fields="reason=Scaled"))
    for times in (1, 2):
        await kube.patch(await kube.get("apps/v1", "Deployment", "demo"), {"spec": {"replicas": 3}})

        async def told(times: int = times) -> bool:
            events = await kube.list("v1", "Event", fields="reason=Scaled")
            assert {each["message"] for each in events} <= {"scaled from 3 to 1 replicas: spec.replicas"}
            return len(events) == 1 and events[0]["count"] == before + times

        await kube.until(told, 30, "the drift to be corrected, and told")


async def takes_a_cost_back(kube: Kube) -> None:
    """One that was left on a pod when autoscaling was switched off."""
    pods = await kube.list("v1", "Pod", labels="octavo.dev/deployment=demo")
    pod = next(each for each in pods if "deletionTimestamp" not in each["metadata"])
    await kube.patch(pod, {"metadata": {"annotations": {COST: "-1", OUR_COST: "-1"}}})

    async def gone() -> bool:
        found = await kube.find("v1", "Pod", pod["metadata"]["name"])
        return found is None or COST not in found["metadata"].get("annotations", {})

    await kube.until(gone, 30, "the cost to be taken back")
