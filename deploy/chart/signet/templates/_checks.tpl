{{- /*
What contradicts itself. Only what the program itself can't see is checked here: what is wrong within config, it says when it
starts. All that is found is told at once.
*/}}
{{- define "signet.checks" -}}
{{- $s := include "signet.settings" . | fromJson -}}
{{- $name := include "signet.fullname" . -}}
{{- $namespace := .Release.Namespace -}}
{{- $p := list -}}

{{- if not (or $s.runtime $s.issuerName) -}}
{{- $p = append $p "config.issuer.name isn't set: write the name of the cert-manager issuer that signs for the mesh" -}}
{{- end -}}
{{- if not $s.roots.any -}}
{{- $p = append $p "config.roots names no source of trust anchors: write config.roots.secret or config.roots.configMap with a name, config.roots.file with an entry in files, or config.roots.fromIssuer: true to trust what the issuer says first" -}}
{{- end -}}
{{- if ne $s.namespace $namespace -}}
{{- $p = append $p (printf "config.namespace is %q, but the release is installed in %q: write config.namespace: %s, or install into %s" $s.namespace $namespace $namespace $s.namespace) -}}
{{- end -}}
{{- if ne $s.service $name -}}
{{- $p = append $p (printf "config.serving.service is %q, but the Service is called %q: write config.serving.service: %s" $s.service $name $name) -}}
{{- end -}}
{{- if $s.replica -}}
{{- $p = append $p "config.replica is set: leave it out, because all replicas have the same file, and each is called like its pod" -}}
{{- end -}}

{{- $paths := dict "ca" "config.ca.listen" "api" "config.api.listen" "metrics" "config.metrics.listen" "health" "config.health.listen" "bundle" "config.bundleEndpoint.listen" -}}
{{- $taken := dict -}}
{{- range $part, $port := $s.ports -}}
{{- $path := get $paths $part -}}
{{- $address := get $s.addresses $part -}}
{{- if eq (int $port) 0 -}}
{{- $p = append $p (printf "%s is %q, which has no number of a port that a Service could lead to: write one such as :6443" $path $address) -}}
{{- else if regexMatch "^(127\\.|localhost:|\\[::1\\])" $address -}}
{{- $p = append $p (printf "%s is %q, which can't be reached from outside of the pod: write :%d" $path $address (int $port)) -}}
{{- else if hasKey $taken (toString $port) -}}
{{- $p = append $p (printf "%s and %s have the same port, %d: give each one of its own" (get $taken (toString $port)) $path (int $port)) -}}
{{- end -}}
{{- $_ := set $taken (toString $port) $path -}}
{{- end -}}

{{- /* Files that config names must be in the pod. */ -}}
{{- $mounts := list -}}
{{- range .Values.extraVolumeMounts -}}
{{- if hasPrefix "/etc/signet/" .mountPath -}}
{{- $p = append $p (printf "extraVolumeMounts: %s is inside the volume of /etc/signet, which is read-only, so the container wouldn't start: add an entry to files, or mount it elsewhere" .mountPath) -}}
{{- end -}}
{{- $mounts = append $mounts .mountPath -}}
{{- end -}}
{{- $given := list -}}
{{- range .Values.files -}}
{{- if or (and .secret .configMap) (not (or .secret .configMap)) -}}
{{- $p = append $p (printf "files: %s needs a secret or a configMap, one of the two" .path) -}}
{{- end -}}
{{- $path := printf "/etc/signet/%s" .path -}}
{{- if or (has $path $given) (eq .path "signet.yaml") -}}
{{- $p = append $p (printf "files: %s is there twice: give each file a path of its own" .path) -}}
{{- end -}}
{{- $given = append $given $path -}}
{{- end -}}
{{- $postgres := .Values.ledger.postgres -}}
{{- if $postgres.secretName -}}
{{- if not (or $s.dsnFile $s.dsnEnv) -}}
{{- $p = append $p "ledger.postgres.secretName is set, but config doesn't say where Signet finds the DSN: write config.ledger.postgres.dsnFile: /etc/signet/postgres/dsn" -}}
{{- else if and $s.dsnFile (not (hasPrefix "/etc/signet/" $s.dsnFile)) -}}
{{- $p = append $p (printf "config.ledger.postgres.dsnFile is %q, but ledger.postgres.secretName is mounted below /etc/signet: write config.ledger.postgres.dsnFile: /etc/signet/postgres/dsn" $s.dsnFile) -}}
{{- else if $s.dsnFile -}}
{{- if has $s.dsnFile $given -}}
{{- $p = append $p (printf "%s comes from files and from ledger.postgres: leave one of them out" $s.dsnFile) -}}
{{- end -}}
{{- $given = append $given $s.dsnFile -}}
{{- end -}}
{{- end -}}
{{- range $path, $file := $s.files -}}
{{- $found := has $file $given -}}
{{- range $mounts }}{{ if or (eq . $file) (hasPrefix (printf "%s/" (trimSuffix "/" .)) $file) }}{{ $found = true }}{{ end }}{{ end -}}
{{- if not $found -}}
{{- if hasPrefix "/etc/signet/" $file -}}
{{- $p = append $p (printf "%s is %q, which isn't in the pod: add an entry to files with path: %s" $path $file (trimPrefix "/etc/signet/" $file)) -}}
{{- else -}}
{{- $p = append $p (printf "%s is %q, which isn't in the pod: write a path below /etc/signet and add an entry to files, or mount it with extraVolumes and extraVolumeMounts" $path $file) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $s.dsnEnv (not $postgres.secretName) -}}
{{- $found := false -}}
{{- range .Values.extraEnv }}{{ if eq .name $s.dsnEnv }}{{ $found = true }}{{ end }}{{ end -}}
{{- if not $found -}}
{{- $p = append $p (printf "config.ledger.postgres.dsnEnv is %q, which isn't set in the pod: write ledger.postgres.secretName, the Secret that holds the DSN" $s.dsnEnv) -}}
{{- end -}}
{{- end -}}
{{- with $s.auditFile -}}
{{- $file := . -}}
{{- $found := false -}}
{{- range append $mounts $s.ledger }}{{ if hasPrefix (printf "%s/" (trimSuffix "/" .)) $file }}{{ $found = true }}{{ end }}{{ end -}}
{{- if not $found -}}
{{- $p = append $p (printf "config.audit.output is %q, which can't be written because the container's file system is read-only: write stdout, a path below %s, or mount a volume with extraVolumes and extraVolumeMounts" $file $s.ledger) -}}
{{- end -}}
{{- end -}}

{{- $least := add $s.delaySeconds $s.drainSeconds 20 -}}
{{- with .Values.terminationGracePeriodSeconds -}}
{{- if lt (int .) (int $least) -}}
{{- $p = append $p (printf "terminationGracePeriodSeconds is %d, but config.shutdown takes %d at most: write %d or more, or leave it out" (int .) $least $least) -}}
{{- end -}}
{{- end -}}
{{- $budget := .Values.podDisruptionBudget -}}
{{- if not (or (kindIs "invalid" $budget.minAvailable) (kindIs "invalid" $budget.maxUnavailable)) -}}
{{- $p = append $p "podDisruptionBudget has both minAvailable and maxUnavailable: leave one of them out" -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- $p = append $p (printf "autoscaling.minReplicas is %d, above maxReplicas, %d: it must not be" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}

{{- with .Values.admissionPolicy -}}
{{- if and .enabled (has "Deny" .actions) (has "Warn" .actions) -}}
{{- $p = append $p "admissionPolicy.actions has both Deny and Warn, which the API server refuses: leave Warn out" -}}
{{- end -}}
{{- range .issuers -}}
{{- if and .namespace (eq (.kind | default "Issuer") "ClusterIssuer") (eq (.group | default "cert-manager.io") "cert-manager.io") -}}
{{- $p = append $p (printf "admissionPolicy.issuers: ClusterIssuer %s has the namespace %s, but is in none: leave namespace out, or write kind: Issuer" .name .namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- $service := .Values.service -}}
{{- if and $service.nodePort (eq $service.type "ClusterIP") -}}
{{- $p = append $p "service.nodePort is set, but service.type ClusterIP has none: write service.type: NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and (eq $service.type "ClusterIP") (or $service.loadBalancerClass $service.loadBalancerSourceRanges $service.externalTrafficPolicy) -}}
{{- $p = append $p "service.loadBalancerClass, loadBalancerSourceRanges and externalTrafficPolicy have no use with service.type ClusterIP: leave them out" -}}
{{- end -}}
{{- range $service.aliases -}}
{{- $host := printf "%s.%s.svc" .name .namespace -}}
{{- if eq $host (include "signet.host" $) -}}
{{- $p = append $p (printf "service.aliases: %s in %s is the Service itself: leave it out" .name .namespace) -}}
{{- else if not (has $host $s.dnsNames) -}}
{{- $p = append $p (printf "service.aliases: %s isn't a name of Signet's certificate, so agents would refuse it: add %s to config.serving.dnsNames" $host $host) -}}
{{- end -}}
{{- end -}}

{{- with .Values.metrics -}}
{{- if and .serviceMonitor.enabled .podMonitor.enabled -}}
{{- $p = append $p "metrics.serviceMonitor and metrics.podMonitor are both enabled, so everything would be scraped twice: enable one of them" -}}
{{- end -}}
{{- if and .serviceMonitor.enabled (not .service.enabled) -}}
{{- $p = append $p "metrics.serviceMonitor needs the Service: write metrics.service.enabled: true, or enable metrics.podMonitor instead" -}}
{{- end -}}
{{- end -}}

{{- if $p -}}
{{- fail (printf "\n\nthe values contradict themselves:\n- %s\n" (join "\n- " $p)) -}}
{{- end -}}
{{- end }}
