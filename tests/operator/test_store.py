"""What is kept at hand: the newest of each object, however it came, and never what has taken its name for it."""

from __future__ import annotations

from typing import Any

from octavo_operator.store import Store

Object = dict[str, Any]
DEMO, CACHE = "octavo.dev/deployment", "octavo.dev/cache"


def body(name: str, version: int, uid: str = "", namespace: str = "a", **labels: str) -> Object:
    named = {f"octavo.dev/{key}": value for key, value in labels.items()}
    managed = [{"manager": "somebody", "fieldsV1": {}}]
    metadata: Object = {"name": name, "namespace": namespace, "uid": uid or name, "resourceVersion": str(version)}
    return {"kind": "Pod", "metadata": metadata | {"labels": named, "managedFields": managed}}


def names(found: list[Object]) -> list[str]:
    return [each["metadata"]["name"] for each in found]


def test_the_newest_stays_whichever_comes_last_and_only_it_is_news() -> None:
    store = Store()
    assert store.put(body("x", 9)) and not store.put(body("x", 9)) and not store.put(body("x", 10 - 2))
    assert store.put(body("x", 10))
    found = store.get("a", "x")
    assert found is not None and found["metadata"]["resourceVersion"] == "10"
    assert store.get("b", "x") is None and len(store) == 1


def test_what_is_read_is_the_readers_own_and_has_no_managed_fields() -> None:
    store = Store()
    store.put(body("x", 1))
    found = store.get("a", "x")
    assert found is not None and "managedFields" not in found["metadata"]
    found["metadata"]["name"] = "changed"
    assert names(store.select("a")) == ["x"]


def test_the_end_of_one_object_is_not_that_of_the_next_of_its_name() -> None:
    store = Store()
    store.put(body("x", 1, "first"))
    store.put(body("x", 5, "second"))
    assert not store.remove(body("x", 4, "first"))
    assert store.remove(body("x", 6, "second")) and not store.remove(body("x", 6, "second"))
    assert store.get("a", "x") is None and list(store) == []


def test_labels_find_what_carries_them_now() -> None:
    store = Store()
    for name, value in (("p2", "demo"), ("p1", "demo"), ("p3", "other")):
        store.put(body(name, 1, deployment=value))
    store.put(body("p1", 1, namespace="b", deployment="demo"))
    store.put(body("v", 1, cache="model"))
    assert names(store.select("a", f"{DEMO}=demo")) == ["p1", "p2"]
    assert names(store.select("a", DEMO)) == ["p1", "p2", "p3"]
    assert names(store.select("a", CACHE)) == ["v"] and names(store.select("a")) == ["p1", "p2", "p3", "v"]
    store.put(body("p1", 2, deployment="other"))
    store.remove(body("p2", 2))
    assert names(store.select("a", f"{DEMO}=demo")) == [] and names(store.select("a", f"{DEMO}=other")) == ["p1", "p3"]


def test_a_list_ends_what_it_does_not_hold_but_for_what_came_after_it() -> None:
    store = Store()
    for name, version in (("old", 1), ("listed", 2), ("written since", 8)):
        store.put(body(name, version))
    store.put(body("old", 1, namespace="b"))
    assert names(store.prune("a", {("a", "listed")}, 5)) == ["old"]
    assert names(store.select("a")) == ["listed", "written since"] and names(store.select("b")) == ["old"]
    assert names(store.prune(None, {("a", "listed")}, 9)) == ["written since", "old"]


def test_what_we_delete_counts_as_ending_until_it_is_heard_to_be_gone() -> None:
    store = Store()
    store.put(body("x", 1))
    store.mark_deleted(body("x", 1))
    found = store.get("a", "x")
    assert found is not None and "deletionTimestamp" in found["metadata"]
    store.mark_deleted(body("x", 1, "another"))
    assert store.remove(body("x", 2))
