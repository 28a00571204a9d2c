{{- define "signet.subject" -}}
- kind: ServiceAccount
  name: {{ include "signet.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{- /*
A Role in a namespace that may not be the release's, and its binding: root, namespace, suffix of the name, rules, and lines that
say why.
*/}}
{{- define "signet.roleElsewhere" -}}
{{- $name := printf "%s-%s" (include "signet.clusterName" .root) .suffix -}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "signet.labels" .root | nindent 4 }}
rules:
  {{- range .why }}
  # {{ . }}
  {{- end }}
  {{- toYaml .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "signet.labels" .root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
  {{- include "signet.subject" .root | nindent 2 }}
{{- end }}
