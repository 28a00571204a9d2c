{{- /* The name of everything: signet, whatever the release is called. */}}
{{- define "signet.fullname" -}}
{{- .Values.fullnameOverride | default "signet" -}}
{{- end }}

{{- /* The name of what isn't in a namespace, or in somebody else's, so that two releases don't share it. */}}
{{- define "signet.clusterName" -}}
{{- printf "%s-%s" (include "signet.fullname" .) .Release.Namespace -}}
{{- end }}

{{- define "signet.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "signet.fullname" .) -}}
{{- end }}

{{- /* The labels by which Services, policies and monitors find the pods. They never change. */}}
{{- define "signet.selectorLabels" -}}
app.kubernetes.io/name: signet
app.kubernetes.io/instance: {{ include "signet.fullname" . }}
{{- end }}

{{- define "signet.labels" -}}
{{- include "signet.labelsJSON" . | fromJson | toYaml -}}
{{- end }}

{{- define "signet.labelsJSON" -}}
{{- $own := dict
  "app.kubernetes.io/name" "signet"
  "app.kubernetes.io/instance" (include "signet.fullname" .)
  "app.kubernetes.io/component" "certificate-authority"
  "app.kubernetes.io/version" (.Values.image.tag | default .Chart.AppVersion | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- merge $own (.Values.commonLabels | default dict) | toJson -}}
{{- end }}

{{- define "signet.image" -}}
{{- $image := .Values.image -}}
{{- $name := $image.repository -}}
{{- if $image.registry }}{{ $name = printf "%s/%s" $image.registry $name }}{{ end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{- /* The DNS name of the Service. */}}
{{- define "signet.host" -}}
{{- printf "%s.%s.svc" (include "signet.fullname" .) .Release.Namespace -}}
{{- end }}

{{- /* Metadata of an object: root, name, namespace where it is in one, and labels and annotations beside the common ones. */}}
{{- define "signet.metadata" -}}
name: {{ .name }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels:
  {{- merge (include "signet.labelsJSON" .root | fromJson) (.labels | default dict) | toYaml | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
