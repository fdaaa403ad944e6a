{{- define "octavo.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "octavo.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "octavo.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "octavo.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* `helm upgrade --reuse-values` brings an older chart's defaults in place of this one's. */}}
{{- define "octavo.check" -}}
{{- range list "crds" "gateway" "networkPolicy" "podDisruptionBudget" "podMonitor" "userRoles" }}
{{- if not (hasKey $.Values .) }}
{{- fail (printf "%s: is missing, as the values are those of an older chart: upgrade with --reset-then-reuse-values in place of --reuse-values" .) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "octavo.selectorLabels" -}}
app.kubernetes.io/name: {{ include "octavo.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{- /* Of the gateways' pods, which run beside the operator. */}}
{{- define "octavo.gatewayLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: gateway
{{- end }}

{{- define "octavo.gatewaySelectorLabels" -}}
app.kubernetes.io/name: {{ include "octavo.name" . | quote }}
{{ include "octavo.gatewayLabels" . }}
{{- end }}

{{- define "octavo.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end }}

{{- define "octavo.labels" -}}
{{ include "octavo.selectorLabels" . }}
{{ include "octavo.commonLabels" . }}
{{- end }}

{{- define "octavo.gatewayObjectLabels" -}}
{{ include "octavo.gatewaySelectorLabels" . }}
{{ include "octavo.commonLabels" . }}
{{- end }}

{{- /* Of the gateway's objects. A Service's name begins with a letter. */}}
{{- define "octavo.gatewayName" -}}
{{- $name := include "octavo.fullname" . }}
{{- if and .Values.gateway.enabled (not (regexMatch "^[a-z]" $name)) }}
{{- fail (printf "gateway: its Service cannot be named after %s, which does not begin with a letter: set fullnameOverride" $name) }}
{{- end }}
{{- printf "%s-gateway" ($name | trunc 55 | trimSuffix "-") }}
{{- end }}

{{- define "octavo.gatewayServiceAccountName" -}}
{{- if .Values.gateway.serviceAccount.create }}
{{- default (include "octavo.gatewayName" .) .Values.gateway.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.gateway.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* The Secret, of one name in each namespace, by whose entry octavo-gateway servers know the gateway. */}}
{{- define "octavo.replicaKeyName" -}}
{{- default (printf "%s-key" (include "octavo.gatewayName" .)) .Values.gateway.replicaKey.secretName }}
{{- end }}

{{- define "octavo.gatewayScheme" -}}
{{- ternary "https" "http" (ne .Values.gateway.tls.secretName "") }}
{{- end }}

{{- /* Where clients in the cluster ask, unless gateway.url says otherwise. */}}
{{- define "octavo.gatewayUrl" -}}
{{- $there := printf "%s.%s.svc:%d" (include "octavo.gatewayName" .) .Release.Namespace (int .Values.gateway.service.port) }}
{{- default (printf "%s://%s/v1" (include "octavo.gatewayScheme" .) $there) .Values.gateway.url }}
{{- end }}

{{- /* The gateway stops taking requests, finishes those it has, and has a margin to end itself. */}}
{{- define "octavo.gatewayGraceSeconds" -}}
{{- add .Values.gateway.drain.delaySeconds .Values.gateway.drain.seconds 15 }}
{{- end }}

{{- /* Milliseconds as seconds. */}}
{{- define "octavo.seconds" -}}
{{- printf "%.3f" (divf . 1000) }}
{{- end }}

{{- define "octavo.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "octavo.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* Where LLMDeployments are looked after, as a YAML list; empty: everywhere. */}}
{{- define "octavo.namespaces" -}}
{{- if eq .Values.scope "Cluster" }}
{{- if .Values.namespaces }}
{{- fail "namespaces: is for scope Namespace; with scope Cluster all namespaces are looked after: leave it empty" }}
{{- end }}
{{- toYaml list }}
{{- else }}
{{- toYaml (.Values.namespaces | default (list .Release.Namespace)) }}
{{- end }}
{{- end }}

{{- /* Who has made the CRD that the cluster holds, if not this release; empty where there is none, or none can be seen. */}}
{{- define "octavo.crdOwner" -}}
{{- $crd := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "llmdeployments.octavo.dev" }}
{{- if $crd }}
{{- $annotations := $crd.metadata.annotations | default dict }}
{{- $owner := printf "%s/%s" (index $annotations "meta.helm.sh/release-namespace") (index $annotations "meta.helm.sh/release-name") }}
{{- if not (hasKey $annotations "meta.helm.sh/release-name") }}
{{- print "no release of Helm" }}
{{- else if ne $owner (printf "%s/%s" .Release.Namespace .Release.Name) }}
{{- printf "the release %s" $owner }}
{{- end }}
{{- end }}
{{- end }}

{{- define "octavo.subjects" -}}
- kind: ServiceAccount
  name: {{ include "octavo.serviceAccountName" . | quote }}
  namespace: {{ .Release.Namespace | quote }}
{{- end }}

{{- /* The image of a dictionary (repository, tag, digest) and the chart's version: by digest where there is one. */}}
{{- define "octavo.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .version .image.tag) }}
{{- end }}
{{- end }}

{{- /* What the operator does where its LLMDeployments are. Secrets are in no rule: it refers to them and reads none. */}}
{{- define "octavo.rules" -}}
- apiGroups: [octavo.dev]
  resources: [llmdeployments]
  verbs: [get, list, watch]
- apiGroups: [octavo.dev]
  resources: [llmdeployments/status]
  verbs: [patch]
- apiGroups: [octavo.dev]
  resources: [llmdeployments/finalizers] # for ownerReferences with blockOwnerDeletion
  verbs: [update]
# delete: what a spec asks for no more. Where OwnerReferencesPermissionEnforcement is on, giving an object that exists an
# owner, as in the adoption of orphans, takes it too.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com] # not every cluster has it
  resources: [podmonitors]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [inference.networking.k8s.io] # nor that
  resources: [inferencepools]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch] # patch: the deletion cost, by which Kubernetes ends the least loaded first
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{- /* What the gateway does there: learn which models there are, and which pods. */}}
{{- define "octavo.gatewayRules" -}}
- apiGroups: [octavo.dev]
  resources: [llmdeployments]
  verbs: [list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
{{- end }}

{{- define "octavo.gatewaySubjects" -}}
- kind: ServiceAccount
  name: {{ include "octavo.gatewayServiceAccountName" . | quote }}
  namespace: {{ .Release.Namespace | quote }}
{{- end }}

{{- /* The Lease is always beside the operator, and so are gateways, whose pods it looks up to ask them for the load. */}}
{{- define "octavo.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create] # which cannot be bound to a name
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [octavo-operator]
  verbs: [get, update]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- end }}
