{{- define "signet.gracePeriod" -}}
{{- $s := include "signet.settings" . | fromJson -}}
{{- .Values.terminationGracePeriodSeconds | default (add $s.delaySeconds $s.drainSeconds 25) | int -}}
{{- end }}

{{- define "signet.affinity" -}}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (include "signet.selectorLabels" . | fromYaml)) -}}
{{- $apart := dict -}}
{{- if eq .Values.spread "required" -}}
{{- $apart = dict "podAntiAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $term)) -}}
{{- else if eq .Values.spread "preferred" -}}
{{- $apart = dict "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" $term))) -}}
{{- end -}}
{{- $affinity := .Values.affinity | default dict -}}
{{- if hasKey $affinity "podAntiAffinity" }}{{ $apart = dict }}{{ end -}}
{{- merge (deepCopy $affinity) $apart | toYaml -}}
{{- end }}

{{- define "signet.topologySpread" -}}
{{- $zones := list (dict
  "maxSkew" 1
  "topologyKey" "topology.kubernetes.io/zone"
  "whenUnsatisfiable" "ScheduleAnyway"
  "labelSelector" (dict "matchLabels" (include "signet.selectorLabels" . | fromYaml))) -}}
{{- if eq .Values.spread "none" }}{{ $zones = list }}{{ end -}}
{{- .Values.topologySpreadConstraints | default $zones | toYaml -}}
{{- end }}
