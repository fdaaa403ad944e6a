"""Good and bad LLMDeployments, judged alike by pydantic and by a real API server.

Each is written as its spec (and name) in YAML. A bad one names the field that the message must be about.
"""

from dataclasses import dataclass
from typing import Any

from octavo_operator.api.yaml_loader import load_documents

SOURCE = "model: {source: {builtin: {name: demo}}}"


@dataclass(frozen=True)
class Case:
    """One manifest; `path` is the offending field, empty where the manifest is good."""

    title: str
    spec: str
    path: str = ""
    name: str = "demo"

    @property
    def manifest(self) -> dict[str, Any]:
        return {
            "apiVersion": "octavo.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": self.name},
            "spec": load_documents(self.spec)[0],  # as kubectl turns YAML into JSON
        }


def with_source(more: str) -> str:
    """A spec that is good but for what is in `more`."""
    return f"{SOURCE}\n{more}"


def from_hub(more: str = "") -> str:
    """A spec whose model is downloaded."""
    return f"model: {{source: {{huggingFace: {{repo: org/model}}}}}}\n{more}"


SHA = "0123456789abcdef" * 4

GOOD = [
    Case("the least there is", SOURCE),
    Case("a directory of the image", "model: {name: llama-3.1/8b:latest, source: {path: {path: /models/llama}}}"),
    Case("a claim's root", "model: {source: {persistentVolumeClaim: {claimName: models}}}"),
    Case("a claim's directory", "model: {source: {persistentVolumeClaim: {claimName: models, path: a/b_c.d}}}"),
    Case("the longest name", SOURCE, name="a" + "-" * 50 + "z"),
    Case("a name of one letter", SOURCE, name="a"),
    Case("no replicas", with_source("replicas: 0")),
    Case("the most replicas", with_source("replicas: 1000")),
    Case("a whole number with a point", with_source("replicas: 2.0")),
    Case("a null is a field left out", with_source("replicas: null\nserver: {image: null, maxModelLength: null}")),
    Case("a null where a default object stands", with_source("server: null\nsuspend: null")),
    Case(
        "every field of the server",
        with_source("""
server:
  image: ghcr.io/x/y:1@sha256:ab
  args: [--max-num-seqs, '64']
  maxModelLength: 8192
  dtype: BFloat16
  compileCache: {claimName: kernels.2}
  env: [{name: A, value: ''}, {name: B}, {name: C, valueFrom: {secretKeyRef: {name: s, key: k, optional: true}}}]
"""),
    ),
    Case(
        "flags that only begin like the operator's",
        with_source("server: {args: [--api-key-file, /keys/a, --api-key-file=/keys/b]}"),
    ),
    Case(
        "a GPU",
        with_source("resources: {accelerator: {products: [NVIDIA-H100-80GB-HBM3, NVIDIA-H200]}, cpu: 4, memory: 48Gi}"),
    ),
    Case("shares of a GPU", with_source("resources: {accelerator: {resourceName: nvidia.com/gpu.shared, count: 3}}")),
    Case("quantities", with_source("resources: {cpu: 500m, memory: 1.5Gi}")),
    Case("more quantities", with_source("resources: {cpu: '0.5', memory: 1073741824}")),
    Case("surge instead of a pause", with_source("rollout: {maxSurge: 1, maxUnavailable: 0}")),
    Case("no waiting at the end", with_source("termination: {propagationSeconds: 0, drainSeconds: 0}")),
    Case(
        "a pod template",
        with_source("""
podTemplate:
  labels: {team: search, example.com/team: search}
  annotations: {example.com/note: any text}
  nodeSelector: {node.kubernetes.io/instance-type: p5}
  tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
  affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: []}}
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway, minDomains: 2}]
  priorityClassName: high
  runtimeClassName: nvidia
  serviceAccountName: model
  imagePullSecrets: [{name: registry}]
  volumes: [{name: models, hostPath: {path: /srv}}, {name: cache, emptyDir: {sizeLimit: 1Gi}}]
  volumeMounts: [{name: models, mountPath: /models, readOnly: true}, {name: cache, mountPath: /tmpfs, subPath: a}]
  initContainers: [{name: fetch, image: busybox, command: [sh, -c, 'true']}]
"""),
    ),
    Case("another port", with_source("networking: {service: {port: 80}}")),
    Case("suspended", with_source("suspend: true")),
    Case("keys of a Secret", with_source("server: {apiKeySecretRef: {name: keys}}")),
    Case("one key of a Secret", with_source("server: {apiKeySecretRef: {name: keys, key: team-a.key}}")),
    Case("one GPU, said aloud", with_source("server: {tensorParallelSize: 1}")),
    Case(
        "host memory for pages",
        with_source("server: {hostMemoryForKVCache: 16Gi}\nresources: {memory: 16.001Gi, ephemeralStorage: 20G}"),
    ),
    Case("host memory in another unit", with_source("server: {hostMemoryForKVCache: 999M}\nresources: {memory: 1Gi}")),
    Case("host memory in bytes", with_source("server: {hostMemoryForKVCache: 5}\nresources: {memory: 6}")),
    Case("no policy", with_source("networking: {networkPolicy: Disabled}")),
    Case("nobody but the gateway", with_source("networking: {allowFrom: []}")),
    Case(
        "callers by their labels",
        with_source("""
networking:
  allowFrom:
    - {namespaceSelector: {}}
    - {podSelector: {matchLabels: {app: chat, example.com/app: ''}}}
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: web}}
      podSelector: {matchExpressions: [{key: a, operator: In, values: [b, c]}, {key: d, operator: DoesNotExist}]}
"""),
    ),
    Case("a pool", with_source("networking: {inferencePool: {endpointPickerRef: {name: epp, failureMode: FailOpen}}}")),
    Case("a model of the hub", from_hub()),
    Case(
        "a gated one, pinned",
        "model: {source: {huggingFace: {repo: O.r-g_/m.O-d_el, revision: refs/pr/1, tokenSecretRef: {name: hf}}}}",
    ),
    Case(
        "a token under another key",
        "model: {source: {huggingFace: {repo: a/b, tokenSecretRef: {name: hf, key: HF_TOKEN}}}}",
    ),
    Case("a bucket", "model: {source: {s3: {uri: s3://models}}}"),
    Case(
        "a prefix in a store of one's own",
        "model: {source: {s3: {uri: 's3://my.models/a/b=c/', endpoint: 'http://minio.storage:9000', "
        "credentialsSecretRef: {name: minio}}}}",
    ),
    Case("an archive", f"model: {{source: {{http: {{url: 'https://example.com/a/b.tar.gz', sha256: {SHA}}}}}}}"),
    Case("a directory on the web", f"model: {{source: {{http: {{url: 'http://web:8080/a%20b/', sha256: {SHA}}}}}}}"),
    Case("an image", "model: {source: {oci: {image: registry.example.com/models/llama@sha256:ab}}}"),
    Case("a directory of an image", "model: {source: {oci: {image: 'models:1', path: llama/8b}}}"),
    Case("a cache", from_hub("storage: {cache: {size: 100Gi}}")),
    Case(
        "every field of the cache",
        from_hub(
            "storage: {cache: {size: 1.5Ti, storageClassName: fast, accessModes: [ReadWriteOnce, ReadWriteMany], "
            "retain: true, prefetch: false}}"
        ),
    ),
    Case("storage without a cache", with_source("storage: {}")),
    Case("watched", with_source("observability: {podMonitor: Enabled}")),
    Case("never evicted", with_source("disruption: {maxUnavailable: 0}")),
    Case("a start of an hour", with_source("startup: {timeoutSeconds: 3600}")),
]

BAD = [
    Case("no spec at all but a mapping", "{}", "spec.model"),
    Case("no source", "model: {name: x}", "spec.model.source"),
    Case("an empty source", "model: {source: {}}", "spec.model.source"),
    Case("two sources", "model: {source: {builtin: {name: demo}, path: {path: /x}}}", "spec.model.source"),
    Case("a source that nobody has", "model: {source: {ftp: {repo: a/b}}}", "spec.model.source.ftp"),
    Case(
        "two that are downloaded",
        "model: {source: {huggingFace: {repo: a/b}, s3: {uri: s3://models}}}",
        "spec.model.source",
    ),
    Case(
        "a repository of nobody", "model: {source: {huggingFace: {repo: model}}}", "spec.model.source.huggingFace.repo"
    ),
    Case(
        "a repository by its address",
        "model: {source: {huggingFace: {repo: 'https://huggingface.co/a/b'}}}",
        "spec.model.source.huggingFace.repo",
    ),
    Case(
        "an empty revision",
        "model: {source: {huggingFace: {repo: a/b, revision: ''}}}",
        "spec.model.source.huggingFace.revision",
    ),
    Case(
        "a token in the manifest",
        "model: {source: {huggingFace: {repo: a/b, token: hf_x}}}",
        "spec.model.source.huggingFace.token",
    ),
    Case("a bucket by its address", "model: {source: {s3: {uri: 'https://a/b'}}}", "spec.model.source.s3.uri"),
    Case("a bucket in capitals", "model: {source: {s3: {uri: s3://Models/a}}}", "spec.model.source.s3.uri"),
    Case(
        "an endpoint with a path",
        "model: {source: {s3: {uri: s3://models, endpoint: 'https://a/b'}}}",
        "spec.model.source.s3.endpoint",
    ),
    Case(
        "credentials from nowhere",
        "model: {source: {s3: {uri: s3://models, credentialsSecretRef: {}}}}",
        "spec.model.source.s3.credentialsSecretRef.name",
    ),
    Case("no digest", "model: {source: {http: {url: 'https://a/b.tar'}}}", "spec.model.source.http.sha256"),
    Case(
        "half a digest",
        f"model: {{source: {{http: {{url: 'https://a/b.tar', sha256: {SHA[:32]}}}}}}}",
        "spec.model.source.http.sha256",
    ),
    Case(
        "a digest in capitals",
        f"model: {{source: {{http: {{url: 'https://a/b.tar', sha256: {SHA.upper()}}}}}}}",
        "spec.model.source.http.sha256",
    ),
    Case(
        "an archive of another kind",
        f"model: {{source: {{http: {{url: 'https://a/b.zip', sha256: {SHA}}}}}}}",
        "spec.model.source.http.url",
    ),
    Case(
        "a password in the address",
        f"model: {{source: {{http: {{url: 'https://me:secret@a/b.tar', sha256: {SHA}}}}}}}",
        "spec.model.source.http.url",
    ),
    Case("no image", "model: {source: {oci: {path: a}}}", "spec.model.source.oci.image"),
    Case("an image with a space", "model: {source: {oci: {image: a b}}}", "spec.model.source.oci.image"),
    Case("a path out of an image", "model: {source: {oci: {image: a, path: ../b}}}", "spec.model.source.oci.path"),
    Case("a cache of no size", from_hub("storage: {cache: {}}"), "spec.storage.cache.size"),
    Case("a cache for what is there", with_source("storage: {cache: {size: 1Gi}}"), "spec.storage.cache"),
    Case(
        "a cache for an image",
        "model: {source: {oci: {image: a}}}\nstorage: {cache: {size: 1Gi}}",
        "spec.storage.cache",
    ),
    Case(
        "a cache that nobody can write to",
        from_hub("storage: {cache: {size: 1Gi, accessModes: [ReadOnlyMany]}}"),
        "spec.storage.cache.accessModes[0]",
    ),
    Case(
        "a cache of no kind",
        from_hub("storage: {cache: {size: 1Gi, accessModes: []}}"),
        "spec.storage.cache.accessModes",
    ),
    Case(
        "a mode twice",
        from_hub("storage: {cache: {size: 1Gi, accessModes: [ReadWriteOnce, ReadWriteOnce]}}"),
        "spec.storage.cache.accessModes",
    ),
    Case("a cache in gigabytes", from_hub("storage: {cache: {size: 1GB}}"), "spec.storage.cache.size"),
    Case(
        "retained, perhaps",
        from_hub("storage: {cache: {size: 1Gi, retain: 'yes'}}"),
        "spec.storage.cache.retain",
    ),
    Case(
        "a second download",
        with_source("podTemplate: {initContainers: [{name: pull, image: x}]}"),
        "spec.podTemplate.initContainers",
    ),
    Case("an unknown built-in", "model: {source: {builtin: {name: demos}}}", "spec.model.source.builtin.name"),
    Case("a relative path", "model: {source: {path: {path: models}}}", "spec.model.source.path.path"),
    Case("a path out of itself", "model: {source: {path: {path: /a/../b}}}", "spec.model.source.path.path"),
    Case(
        "a claim's absolute path",
        "model: {source: {persistentVolumeClaim: {claimName: m, path: /a}}}",
        "spec.model.source.persistentVolumeClaim.path",
    ),
    Case(
        "a claim's path out of it",
        "model: {source: {persistentVolumeClaim: {claimName: m, path: ../a}}}",
        "spec.model.source.persistentVolumeClaim.path",
    ),
    Case("a model name with a space", "model: {name: a b, source: {builtin: {name: demo}}}", "spec.model.name"),
    Case("a typo at the top", with_source("replcas: 2"), "spec.replcas"),
    Case("a typo far down", with_source("server: {env: [{name: A, vale: x}]}"), "spec.server.env[0].vale"),
    Case("snake case", with_source("server: {max_model_length: 5}"), "spec.server.max_model_length"),
    Case("a field of a later version", with_source("autoscaling: {mode: Internal}"), "spec.autoscaling"),
    Case("text for a number", with_source("replicas: two"), "spec.replicas"),
    Case("a number in quotes", with_source("replicas: '2'"), "spec.replicas"),
    Case("half a replica", with_source("replicas: 1.5"), "spec.replicas"),
    Case("fewer than none", with_source("replicas: -1"), "spec.replicas"),
    Case("too many", with_source("replicas: 1001"), "spec.replicas"),
    Case("true for a number", with_source("replicas: true"), "spec.replicas"),
    Case("a cache nowhere", with_source("server: {compileCache: {}}"), "spec.server.compileCache.claimName"),
    Case("a number for text", with_source("server: {env: [{name: A, value: 1}]}"), "spec.server.env[0].value"),
    Case("text for true", with_source("suspend: 'yes'"), "spec.suspend"),
    Case("a list for a mapping", with_source("server: []"), "spec.server"),
    Case("a mapping for a list", with_source("server: {args: {a: b}}"), "spec.server.args"),
    Case("a null in a list", with_source("server: {args: [null]}"), "spec.server.args[0]"),
    Case("an unknown dtype", with_source("server: {dtype: float16}"), "spec.server.dtype"),
    Case("no length", with_source("server: {maxModelLength: 0}"), "spec.server.maxModelLength"),
    Case("a flag of the operator's", with_source("server: {args: ['--port', '9']}"), "spec.server.args"),
    Case("the same with a sign", with_source("server: {args: ['--dtype=float16']}"), "spec.server.args"),
    Case("help in the arguments", with_source("server: {args: [--seed=1, --help]}"), "spec.server.args"),
    Case("the same in short", with_source("server: {args: [-h]}"), "spec.server.args"),
    Case("a key in the arguments", with_source("server: {args: ['--api-key=secret']}"), "spec.server.args"),
    Case("a variable twice", with_source("server: {env: [{name: A}, {name: A}]}"), "spec.server.env"),
    Case("a variable with a bad name", with_source("server: {env: [{name: 1A}]}"), "spec.server.env[0].name"),
    Case(
        "two values",
        with_source("server: {env: [{name: A, value: x, valueFrom: {secretKeyRef: {name: s, key: k}}}]}"),
        "spec.server.env[0]",
    ),
    Case(
        "a value from nowhere", with_source("server: {env: [{name: A, valueFrom: {}}]}"), "spec.server.env[0].valueFrom"
    ),
    Case("two whole GPUs", with_source("resources: {accelerator: {count: 2}}"), "spec.resources.accelerator.count"),
    Case(
        "a product twice",
        with_source("resources: {accelerator: {products: [a, a]}}"),
        "spec.resources.accelerator.products",
    ),
    Case("a floating quantity", with_source("resources: {cpu: 0.5}"), "spec.resources.cpu"),
    Case("a quantity of nothing", with_source("resources: {memory: 0}"), "spec.resources.memory"),
    Case("an unknown unit", with_source("resources: {memory: 48GB}"), "spec.resources.memory"),
    Case("nothing may move", with_source("rollout: {maxSurge: 0, maxUnavailable: 0}"), "spec.rollout"),
    Case("no surge, and the default taken away", with_source("rollout: {maxUnavailable: 0}"), "spec.rollout"),
    Case("a start of no time", with_source("startup: {timeoutSeconds: 1}"), "spec.startup.timeoutSeconds"),
    Case("two GPUs a replica", with_source("server: {tensorParallelSize: 2}"), "spec.server.tensorParallelSize"),
    Case("keys from nowhere", with_source("server: {apiKeySecretRef: {}}"), "spec.server.apiKeySecretRef.name"),
    Case(
        "a Secret's key with a slash",
        with_source("server: {apiKeySecretRef: {name: keys, key: a/b}}"),
        "spec.server.apiKeySecretRef.key",
    ),
    Case(
        "host memory out of nothing",
        with_source("server: {hostMemoryForKVCache: 16Gi}"),
        "spec.server.hostMemoryForKVCache",
    ),
    Case(
        "more host memory than there is",
        with_source("server: {hostMemoryForKVCache: 16Gi}\nresources: {memory: 16384Mi}"),
        "spec.server.hostMemoryForKVCache",
    ),
    Case("the swap space as a flag", with_source("server: {args: [--swap-space=4]}"), "spec.server.args"),
    Case("its other name", with_source("server: {args: [--kv-offloading-size, '4']}"), "spec.server.args"),
    Case("no disk", with_source("resources: {ephemeralStorage: 0Gi}"), "spec.resources.ephemeralStorage"),
    Case("a policy of no name", with_source("networking: {networkPolicy: Open}"), "spec.networking.networkPolicy"),
    Case("a caller of no kind", with_source("networking: {allowFrom: [{}]}"), "spec.networking.allowFrom[0]"),
    Case(
        "a label to be in nothing",
        with_source("networking: {allowFrom: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]}"),
        "spec.networking.allowFrom[0].podSelector.matchExpressions[0].values",
    ),
    Case(
        "a label that exists with a value",
        with_source(
            "networking: {allowFrom: [{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}]}"
        ),
        "spec.networking.allowFrom[0].podSelector.matchExpressions[0].values",
    ),
    Case(
        "a caller's label with a space",
        with_source("networking: {allowFrom: [{podSelector: {matchLabels: {a b: c}}}]}"),
        "spec.networking.allowFrom[0].podSelector.matchLabels",
    ),
    Case(
        "too many callers",
        with_source(f"networking: {{allowFrom: [{', '.join(['{podSelector: {}}'] * 17)}]}}"),
        "spec.networking.allowFrom",
    ),
    Case(
        "a pool without a picker",
        with_source("networking: {inferencePool: {}}"),
        "spec.networking.inferencePool.endpointPickerRef",
    ),
    Case("watched, but not quite", with_source("observability: {podMonitor: true}"), "spec.observability.podMonitor"),
    Case("a budget below none", with_source("disruption: {maxUnavailable: -1}"), "spec.disruption.maxUnavailable"),
    Case(
        "a volume for keys",
        with_source("podTemplate: {volumes: [{name: api-keys}]}"),
        "spec.podTemplate.volumes",
    ),
    Case("a port of none", with_source("networking: {service: {port: 0}}"), "spec.networking.service.port"),
    Case("a label with a space", with_source("podTemplate: {labels: {a: b c}}"), "spec.podTemplate.labels"),
    Case("a label's key with a space", with_source("podTemplate: {labels: {a b: c}}"), "spec.podTemplate.labels"),
    Case(
        "a label of the operator's",
        with_source("podTemplate: {labels: {octavo.dev/deployment: x}}"),
        "spec.podTemplate.labels",
    ),
    Case(
        "an annotation's empty name",
        with_source("podTemplate: {annotations: {example.com/: c}}"),
        "spec.podTemplate.annotations",
    ),
    Case(
        "a node label too long",
        with_source(f"podTemplate: {{nodeSelector: {{{'a' * 64}: b}}}}"),
        "spec.podTemplate.nodeSelector",
    ),
    Case(
        "a volume of the operator's",
        with_source("podTemplate: {volumes: [{name: tmp, emptyDir: {}}]}"),
        "spec.podTemplate.volumes",
    ),
    Case(
        "a mount of nothing",
        with_source("podTemplate: {volumeMounts: [{name: a, mountPath: /a}]}"),
        "spec.podTemplate.volumeMounts",
    ),
    Case(
        "a mount over the operator's",
        with_source("podTemplate: {volumes: [{name: a}], volumeMounts: [{name: a, mountPath: /tmp}]}"),
        "spec.podTemplate.volumeMounts",
    ),
    Case(
        "a second server",
        with_source("podTemplate: {initContainers: [{name: server, image: x}]}"),
        "spec.podTemplate.initContainers",
    ),
    Case(
        "an unknown effect",
        with_source("podTemplate: {tolerations: [{effect: Never}]}"),
        "spec.podTemplate.tolerations[0].effect",
    ),
    Case(
        "a spread twice",
        with_source(
            "podTemplate: {topologySpreadConstraints: [{maxSkew: 1, topologyKey: z, whenUnsatisfiable: DoNotSchedule},"
            " {maxSkew: 2, topologyKey: z, whenUnsatisfiable: DoNotSchedule}]}"
        ),
        "spec.podTemplate.topologySpreadConstraints",
    ),
    Case("a name that begins with a digit", SOURCE, "metadata.name", name="8b"),
    Case("a name of 53", SOURCE, "metadata.name", name="a" * 53),
    Case("a name with a point", SOURCE, "metadata.name", name="a.b"),
]
