"""What the emulator says is what a real API server says: the same assertions on both."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException

from kube_fixture import Kube
from kube_fixture.widget import GROUP, Widget

pytestmark = pytest.mark.every_control_plane
Object = dict[str, Any]


def version(held: Object) -> str:
    return str(held["metadata"]["resourceVersion"])


def generation(held: Object) -> int:
    return int(held["metadata"]["generation"])


def refusal(error: pytest.ExceptionInfo[ApiException]) -> tuple[int, str]:
    return error.value.status, str(error.value.body)


# Writes


async def test_a_created_object_has_identity_and_defaults_and_no_status(kube: Kube, widget: Widget) -> None:
    made = await kube.create({**widget(), "status": {"phase": "Ready"}})
    assert made["metadata"]["uid"] and version(made) and made["metadata"]["creationTimestamp"].endswith("Z")
    assert generation(made) == 1
    assert made["spec"] == {"size": 3, "replicas": 1}
    assert "status" not in made
    assert (await kube.get(f"{GROUP}/v1", "Widget", "w"))["metadata"]["uid"] == made["metadata"]["uid"]


async def test_a_name_is_taken_once_and_again_after_deletion_with_another_uid(kube: Kube, widget: Widget) -> None:
    first = await kube.create(widget())
    with pytest.raises(ApiException) as error:
        await kube.create(widget())
    assert refusal(error)[0] == 409 and "AlreadyExists" in refusal(error)[1]
    await kube.delete(first)
    assert (await kube.create(widget()))["metadata"]["uid"] != first["metadata"]["uid"]


async def test_a_name_can_be_generated(kube: Kube, widget: Widget) -> None:
    body = widget()
    body["metadata"] = {"generateName": "made-", "namespace": kube.namespace}
    assert (await kube.create(body))["metadata"]["name"].startswith("made-")


@pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "a..b"])
async def test_a_name_that_is_no_subdomain_is_refused(kube: Kube, widget: Widget, name: str) -> None:
    with pytest.raises(ApiException) as error:
        await kube.create(widget(name))
    assert refusal(error)[0] == 422


async def test_nothing_is_created_in_a_namespace_that_is_not_there(kube: Kube, widget: Widget) -> None:
    body = widget()
    body["metadata"]["namespace"] = "nowhere"
    with pytest.raises(ApiException) as error:
        await kube.create(body)
    assert refusal(error)[0] == 404


async def test_the_generation_counts_changes_of_spec_alone(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget())
    spec = await kube.patch(made, {"spec": {"size": 4}})
    labels = await kube.patch(made, {"metadata": {"labels": {"a": "b"}}})
    status = await kube.patch(made, {"status": {"phase": "Ready"}}, subresource="status")
    assert [generation(each) for each in (made, spec, labels, status)] == [1, 2, 2, 2]
    assert len({version(each) for each in (made, spec, labels, status)}) == 4


async def test_a_write_that_changes_nothing_makes_no_new_version(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget())
    assert version(await kube.patch(made, {"spec": {"size": 3}})) == version(made)
    assert version(await kube.replace(made)) == version(made)
    phase = await kube.patch(made, {"status": {"phase": "Ready"}}, subresource="status")
    again = await kube.patch(made, {"status": {"phase": "Ready"}}, subresource="status")
    assert version(again) == version(phase)


async def test_a_merge_patch_removes_what_it_sets_to_null(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget(mode="Fast", tags={"a": "1", "b": "2"}, args=["x", "y"]))
    changed = await kube.patch(made, {"spec": {"mode": None, "tags": {"a": None}, "args": ["z"]}})
    assert changed["spec"] == {"size": 3, "replicas": 1, "tags": {"b": "2"}, "args": ["z"]}


async def test_status_and_spec_are_written_apart(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget())
    both = {"spec": {"size": 9}, "status": {"phase": "Ready"}, "metadata": {"labels": {"a": "b"}}}
    status = await kube.patch(made, both, subresource="status")
    assert status["spec"]["size"] == 3 and status["status"] == {"phase": "Ready"}
    assert "labels" not in status["metadata"]
    spec = await kube.patch(made, {"spec": {"size": 9}, "status": {"phase": "Gone"}})
    assert spec["spec"]["size"] == 9 and spec["status"] == {"phase": "Ready"}


async def test_a_put_with_an_old_version_conflicts(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget())
    await kube.patch(made, {"spec": {"size": 4}})
    with pytest.raises(ApiException) as error:
        await kube.replace(made)
    assert refusal(error)[0] == 409 and "Conflict" in refusal(error)[1]


async def test_a_patch_with_an_old_version_conflicts(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget())
    await kube.patch(made, {"spec": {"size": 4}})
    with pytest.raises(ApiException) as error:
        await kube.patch(made, {"metadata": {"resourceVersion": version(made)}, "spec": {"size": 5}})
    assert refusal(error)[0] == 409


async def test_a_write_for_another_uid_is_refused(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget())
    stranger = {"uid": "00000000-0000-0000-0000-000000000000"}
    with pytest.raises(ApiException) as error:
        await kube.patch(made, {"metadata": stranger, "spec": {"size": 5}})
    assert refusal(error)[0] == 422
    with pytest.raises(ApiException) as error:
        await kube.replace({**made, "metadata": {**made["metadata"], **stranger}})
    assert refusal(error)[0] == 409


async def test_a_put_of_a_custom_resource_needs_a_version(kube: Kube, widget: Widget) -> None:
    await kube.create(widget())
    with pytest.raises(ApiException) as error:
        await kube.replace(widget(size=5))
    assert refusal(error)[0] == 422


async def test_a_put_of_what_is_not_there_is_not_found(kube: Kube, widget: Widget) -> None:
    with pytest.raises(ApiException) as error:
        await kube.replace({**widget(), "metadata": {**widget()["metadata"], "resourceVersion": "1"}})
    assert refusal(error)[0] == 404


async def test_a_put_replaces_the_spec_and_keeps_the_identity(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget(mode="Fast"))
    body = widget(size=5)
    body["metadata"]["resourceVersion"] = version(made)
    replaced = await kube.replace(body)
    assert replaced["spec"] == {"size": 5, "replicas": 1}
    assert replaced["metadata"]["uid"] == made["metadata"]["uid"] and generation(replaced) == 2


async def test_a_dry_run_answers_and_writes_nothing(kube: Kube, widget: Widget) -> None:
    assert (await kube.create(widget(), dry_run=True))["spec"]["replicas"] == 1
    assert (await kube.apply(widget(), dry_run=True))["spec"]["replicas"] == 1
    assert await kube.find(f"{GROUP}/v1", "Widget", "w") is None
    made = await kube.create(widget())
    assert (await kube.patch(made, {"spec": {"size": 5}}, dry_run=True))["spec"]["size"] == 5
    assert await kube.get(f"{GROUP}/v1", "Widget", "w") == made


async def test_an_object_with_a_finalizer_waits_for_it(kube: Kube, widget: Widget) -> None:
    body = widget()
    body["metadata"]["finalizers"] = ["octavo.dev/wait"]
    made = await kube.create(body)
    await kube.delete(made)
    marked = await kube.get(f"{GROUP}/v1", "Widget", "w")
    assert marked["metadata"]["deletionTimestamp"] and generation(marked) == 2
    await kube.delete(made)
    assert version(await kube.get(f"{GROUP}/v1", "Widget", "w")) == version(marked)
    await kube.patch(made, {"metadata": {"finalizers": None}})
    assert await kube.find(f"{GROUP}/v1", "Widget", "w") is None


async def test_a_deletion_of_another_uid_conflicts(kube: Kube, widget: Widget) -> None:
    await kube.create(widget())
    path = f"/apis/{GROUP}/v1/namespaces/{kube.namespace}/widgets/w"
    with pytest.raises(ApiException) as error:
        body = {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}
        await kube.dynamic.request("delete", path, body=body)
    assert refusal(error)[0] == 409
    assert await kube.find(f"{GROUP}/v1", "Widget", "w")


# Reads


async def test_labels_select(kube: Kube, widget: Widget) -> None:
    for name, labels in {"a": {"app": "x"}, "b": {"app": "y", "tier": "1"}, "c": {}}.items():
        await kube.create(widget(name, labels))

    async def chosen(labels: str, fields: str = "") -> str:
        found = await kube.list(f"{GROUP}/v1", "Widget", labels=labels, fields=fields)
        return "".join(held["metadata"]["name"] for held in found)

    assert await chosen("") == "abc"
    assert await chosen("app=x") == "a"
    assert await chosen("app!=x") == "bc"
    assert await chosen("app in (x, y)") == "ab"
    assert await chosen("app notin (x)") == "bc"
    assert await chosen("tier") == "b"
    assert await chosen("!app") == "c"
    assert await chosen("app in (x,y),tier=1") == "b"
    assert await chosen("", "metadata.name=c") == "c"


async def test_a_selector_that_is_none_is_refused(kube: Kube, widget: Widget) -> None:
    with pytest.raises(ApiException) as error:
        await kube.list(f"{GROUP}/v1", "Widget", labels="app in x")
    assert refusal(error)[0] == 400


async def test_a_list_over_all_namespaces_has_them_all(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget())
    everywhere = await kube.list(f"{GROUP}/v1", "Widget", namespace="")
    assert made["metadata"]["uid"] in {held["metadata"]["uid"] for held in everywhere}


async def test_an_unknown_resource_is_not_found(kube: Kube) -> None:
    with pytest.raises(ApiException) as error:
        await kube.dynamic.request("get", "/apis/fixture.octavo.dev/v1/gadgets")
    assert refusal(error)[0] == 404


# Watches


async def test_a_watch_goes_on_from_the_version_of_a_list(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget("old"))
    since = (await kube.list_raw(f"{GROUP}/v1", "Widget"))["metadata"]["resourceVersion"]
    new = await kube.create(widget("new"))
    await kube.patch(new, {"spec": {"size": 5}})
    await kube.delete(made)
    seen = []
    async for kind, held in kube.watch(f"{GROUP}/v1", "Widget", since=since):
        seen.append((kind, held["metadata"]["name"], held["spec"]["size"]))
        if len(seen) == 3:
            break
    assert seen == [("ADDED", "new", 3), ("MODIFIED", "new", 5), ("DELETED", "old", 3)]


async def test_a_watch_without_a_version_begins_with_what_is_there(kube: Kube, widget: Widget) -> None:
    await kube.create(widget())
    async for kind, held in kube.watch(f"{GROUP}/v1", "Widget"):
        assert (kind, held["metadata"]["name"]) == ("ADDED", "w")
        break


async def test_for_a_watch_with_a_selector_what_stops_matching_is_deleted(kube: Kube, widget: Widget) -> None:
    since = (await kube.list_raw(f"{GROUP}/v1", "Widget"))["metadata"]["resourceVersion"]
    made = await kube.create(widget(labels={"app": "x"}))
    await kube.create(widget("other", labels={"app": "y"}))
    await kube.patch(made, {"metadata": {"labels": {"app": "y"}}})
    await kube.patch(made, {"metadata": {"labels": {"app": "x"}}})
    seen = []
    async for kind, held in kube.watch(f"{GROUP}/v1", "Widget", since=since, labels="app=x"):
        seen.append((kind, held["metadata"]["name"]))
        if len(seen) == 3:
            break
    assert seen == [("ADDED", "w"), ("DELETED", "w"), ("ADDED", "w")]


async def test_a_watch_from_a_version_that_is_gone_is_told_410(kube: Kube, widget: Widget) -> None:
    async for kind, status in kube.watch(f"{GROUP}/v1", "Widget", since="1"):
        assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
        return
    pytest.fail("the watch ended without a word")


async def test_a_watch_ends_when_it_asked_to(kube: Kube, widget: Widget) -> None:
    since = (await kube.list_raw(f"{GROUP}/v1", "Widget"))["metadata"]["resourceVersion"]
    assert [event async for event in kube.watch(f"{GROUP}/v1", "Widget", since=since, seconds=1)] == []


# Scale


async def test_replicas_are_read_and_written_through_scale(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget(replicas=2))
    await kube.patch(made, {"status": {"replicas": 1, "selector": "app=x"}}, subresource="status")
    path = f"/apis/{GROUP}/v1/namespaces/{kube.namespace}/widgets/w/scale"
    scale = await (await kube.dynamic.request("get", path, serialize=False)).json()
    assert scale["spec"] == {"replicas": 2} and scale["status"] == {"replicas": 1, "selector": "app=x"}
    await kube.dynamic.request("put", path, body={**scale, "spec": {"replicas": 5}}, serialize=False)
    changed = await kube.get(f"{GROUP}/v1", "Widget", "w")
    assert changed["spec"]["replicas"] == 5 and generation(changed) == 2
    with pytest.raises(ApiException) as error:
        await kube.dynamic.request("put", path, body={**scale, "spec": {"replicas": 6}}, serialize=False)
    assert refusal(error)[0] == 409


# Schema


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"size": "three"}, "spec.size"),
        ({"size": 0}, "spec.size"),
        ({"size": 11}, "spec.size"),
        ({"mode": "Slow"}, "spec.mode"),
        ({"tags": {"a": 1}}, "spec.tags.a"),
        ({"env": [{"value": "v"}]}, "spec.env[0].name"),
        ({"limits": [1]}, "spec.limits"),
    ],
)
async def test_a_wrong_field_is_refused_by_its_path(kube: Kube, widget: Widget, spec: Object, field: str) -> None:
    with pytest.raises(ApiException) as error:
        await kube.create(widget(**spec))
    assert refusal(error)[0] == 422 and field in refusal(error)[1]


async def test_a_missing_required_field_is_refused(kube: Kube, widget: Widget) -> None:
    with pytest.raises(ApiException) as error:
        await kube.create({**widget(), "spec": {}})
    assert refusal(error)[0] == 422 and "spec.size" in refusal(error)[1] and "Required value" in refusal(error)[1]


async def test_an_unknown_field_is_refused_strictly_and_dropped_otherwise(kube: Kube, widget: Widget) -> None:
    with pytest.raises(ApiException) as error:
        await kube.create(widget(colour="red"))
    assert refusal(error)[0] == 400 and "spec.colour" in refusal(error)[1]
    made = await kube.create(widget(colour="red", anything={"goes": [1]}, limits="3"), strict=False)
    assert made["spec"] == {"size": 3, "replicas": 1, "anything": {"goes": [1]}, "limits": "3"}


async def test_null_is_a_default_where_it_is_not_allowed_and_itself_where_it_is(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget(replicas=None, note=None))
    assert made["spec"] == {"size": 3, "replicas": 1, "note": None}


async def test_a_default_below_an_absent_field_is_not_made_up(kube: Kube, widget: Widget) -> None:
    assert "tuning" not in (await kube.create(widget("without")))["spec"]
    made = await kube.create(widget("with", tuning={}))
    assert made["spec"]["tuning"] == {"policy": "Auto"}


async def test_a_wrong_status_is_refused(kube: Kube, widget: Widget) -> None:
    made = await kube.create(widget())
    with pytest.raises(ApiException) as error:
        await kube.patch(made, {"status": {"replicas": "two"}}, subresource="status")
    assert refusal(error)[0] == 422 and "status.replicas" in refusal(error)[1]


# Built-in resources


async def test_a_deployment_has_one_replica_unless_told(kube: Kube) -> None:
    made = await kube.apply(deployment("d"))
    assert made["spec"]["replicas"] == 1 and generation(made) == 1
    scaled = await kube.apply(deployment("d", replicas=3))
    assert scaled["spec"]["replicas"] == 3 and generation(scaled) == 2


async def test_a_deployments_status_is_its_subresource(kube: Kube) -> None:
    made = await kube.create({**deployment("d", replicas=0), "status": {"readyReplicas": 7}})
    assert made["status"].get("readyReplicas") is None


@pytest.mark.parametrize("kind", ["ConfigMap", "Service", "PersistentVolumeClaim", "Pod"])
async def test_the_kinds_that_the_operator_renders_can_be_applied(kube: Kube, kind: str) -> None:
    body = copy.deepcopy(BUILT_IN[kind])
    made = await kube.apply(body)
    again = await kube.apply(body)
    # Not the version of all: the controllers of a real one write the status of some in between.
    assert again["spec" if "spec" in body else "data"] == made["spec" if "spec" in body else "data"]
    if kind in {"ConfigMap", "Service"}:
        assert version(again) == version(made)
    assert (await kube.list("v1", kind, labels="app=x"))[0]["metadata"]["uid"] == made["metadata"]["uid"]


async def test_a_lease_is_taken_by_one_of_two(kube: Kube) -> None:
    metadata = {"name": "leader", "namespace": kube.namespace}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
    made = await kube.create({**lease, "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15}})
    taken = {**made, "spec": {**made["spec"], "holderIdentity": "b"}}
    assert (await kube.replace(taken))["spec"]["holderIdentity"] == "b"
    with pytest.raises(ApiException) as error:
        await kube.replace({**made, "spec": {**made["spec"], "holderIdentity": "c"}})
    assert refusal(error)[0] == 409


def deployment(name: str, **spec: Any) -> Object:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": labels}, "template": template, **spec},
    }


BUILT_IN: dict[str, Object] = {
    kind: {"apiVersion": "v1", "kind": kind, "metadata": {"name": "x", "labels": {"app": "x"}}, **body}
    for kind, body in dict[str, Object](
        {
            "ConfigMap": {"data": {"key": "value"}},
            "Service": {"spec": {"selector": {"app": "x"}, "ports": [{"name": "http", "port": 80}]}},
            "PersistentVolumeClaim": {
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
            },
            "Pod": {"spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}]}]}},
        }
    ).items()
}
