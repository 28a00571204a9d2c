{{- /*
What the templates need to know of the configuration, as JSON: its values, with the program's defaults where they are unset.
Nothing else reads .Values.config but what has it verbatim, the ConfigMap, and the checksum of the pods.

The defaults are those of the Go types; a test holds them together.
*/}}
{{- define "signet.settings" -}}
{{- $c := .Values.config -}}
{{- $issuer := $c.issuer | default dict -}}
{{- $issuers := $c.issuers | default dict -}}
{{- $runtime := $issuers.runtime | default dict -}}
{{- $roots := $c.roots | default dict -}}
{{- $distribution := $c.distribution | default dict -}}
{{- $crl := $c.crl | default dict -}}
{{- $bundle := $c.bundleEndpoint | default dict -}}
{{- $istiod := $c.istiod | default dict -}}
{{- $ca := $c.ca | default dict -}}
{{- $token := $ca.token | default dict -}}
{{- $certificates := $ca.certificates | default dict -}}
{{- $nodes := $ca.nodes | default dict -}}
{{- $registration := $ca.registration | default dict -}}
{{- $remote := $ca.remoteClusters | default dict -}}
{{- $signer := $c.signer | default dict -}}
{{- $serving := $c.serving | default dict -}}
{{- $ledger := $c.ledger | default dict -}}
{{- $postgres := $ledger.postgres | default dict -}}
{{- $api := $c.api | default dict -}}
{{- $inventory := $c.inventory | default dict -}}
{{- $gateways := $inventory.gateways | default dict -}}
{{- $probes := $c.probes | default dict -}}
{{- $audit := $c.audit | default dict -}}
{{- $shutdown := $c.shutdown | default dict -}}
{{- $namespace := $c.namespace | default "istio-system" -}}
{{- /* Issuers, each as group/kind/name. Those that sign for some callers only are not looked at before. */ -}}
{{- $watched := list -}}
{{- if or $issuer.name (not $runtime.name) }}{{ $watched = append $watched $issuer }}{{ end -}}
{{- range $issuers.fallback }}{{ $watched = append $watched . }}{{ end -}}
{{- $ruled := list -}}
{{- $byLabels := false -}}
{{- range $ca.rules -}}
{{- if .namespaceLabels }}{{ $byLabels = true }}{{ end -}}
{{- if (.issuer | default dict).name }}{{ $ruled = append $ruled .issuer }}{{ end -}}
{{- end -}}
{{- $kinds := list -}}
{{- if $runtime.name }}{{ $kinds = list "Issuer" "ClusterIssuer" }}{{ end -}}
{{- range $watched -}}
{{- if eq (.group | default "cert-manager.io") "cert-manager.io" }}{{ $kinds = append $kinds (.kind | default "Issuer") }}{{ end -}}
{{- end -}}
{{- $apiOn := not $api.disabled -}}
{{- /* How long a replica may take to leave, and its parts, as the program's defaults make them of one another. */ -}}
{{- $signing := include "signet.seconds" ($signer.timeout | default "20s") | int -}}
{{- $request := add $signing 5 | int -}}
{{- if $ca.requestTimeout }}{{ $request = include "signet.seconds" $ca.requestTimeout | int }}{{ end -}}
{{- $drain := add $request 5 | int -}}
{{- if $shutdown.drain }}{{ $drain = include "signet.seconds" $shutdown.drain | int }}{{ end -}}
{{- $delay := include "signet.seconds" ($shutdown.delay | default "5s") | int -}}
{{- $addresses := dict "ca" ($ca.listen | default ":6443") "metrics" (($c.metrics | default dict).listen | default ":9402") "health" (($c.health | default dict).listen | default ":6060") -}}
{{- if $apiOn }}{{ $_ := set $addresses "api" ($api.listen | default ":8443") }}{{ end -}}
{{- with $bundle.listen }}{{ $_ := set $addresses "bundle" . }}{{ end -}}
{{- $ports := dict -}}
{{- range $part, $address := $addresses }}{{ $_ := set $ports $part (regexFind "[0-9]+$" $address | default "0" | int) }}{{ end -}}
{{- /* Files that the pods must have. */ -}}
{{- $files := dict -}}
{{- with $roots.file }}{{ $_ := set $files "config.roots.file" . }}{{ end -}}
{{- with $crl.file }}{{ $_ := set $files "config.crl.file" . }}{{ end -}}
{{- with $bundle.certFile }}{{ $_ := set $files "config.bundleEndpoint.certFile" . }}{{ end -}}
{{- with $bundle.keyFile }}{{ $_ := set $files "config.bundleEndpoint.keyFile" . }}{{ end -}}
{{- with $postgres.dsnFile }}{{ $_ := set $files "config.ledger.postgres.dsnFile" . }}{{ end -}}
{{- range $n, $other := $roots.federated -}}
{{- with $other.file }}{{ $_ := set $files (printf "config.roots.federated[%d].file" $n) . }}{{ end -}}
{{- with $other.caFile }}{{ $_ := set $files (printf "config.roots.federated[%d].caFile" $n) . }}{{ end -}}
{{- end -}}
{{- range $n, $other := $ca.oidc -}}
{{- with $other.caFile }}{{ $_ := set $files (printf "config.ca.oidc[%d].caFile" $n) . }}{{ end -}}
{{- end -}}
{{- /* Ports outside of the cluster that Signet connects to. */ -}}
{{- $urls := list -}}
{{- range $roots.federated }}{{ with .endpointURL }}{{ $urls = append $urls . }}{{ end }}{{ end -}}
{{- range $ca.oidc }}{{ with .issuer }}{{ $urls = append $urls . }}{{ end }}{{ end -}}
{{- $outside := list -}}
{{- range $remote.allowed -}}
{{- range .servers }}{{ $urls = append $urls . }}{{ end -}}
{{- if not .servers }}{{ $outside = concat $outside (list 443 6443) }}{{ end -}}
{{- end -}}
{{- range $urls -}}
{{- $outside = append $outside (regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" | default "443" | int) -}}
{{- end -}}
{{- $gatewaysOn := and $apiOn (not $gateways.disabled) -}}
{{- dict
  "namespace" $namespace
  "addresses" $addresses
  "ports" $ports
  "issuers" (concat $watched $ruled | default list)
  "issuerKinds" (uniq $kinds)
  "runtime" ($runtime.name | default "")
  "runtimeNamespace" ($runtime.namespace | default $namespace)
  "roots" (dict
    "any" (or $roots.file $roots.secret $roots.configMap $roots.fromIssuer | empty | not)
    "fromIssuer" ($roots.fromIssuer | default false)
    "secret" (($roots.secret | default dict).name | default "")
    "configMap" (($roots.configMap | default dict).name | default ""))
  "crl" (dict
    "enabled" (or $crl.file $crl.secret $crl.configMap | empty | not)
    "secret" (($crl.secret | default dict).name | default "")
    "configMap" (($crl.configMap | default dict).name | default ""))
  "distribution" (not $distribution.disabled)
  "distributed" ($distribution.configMap | default "istio-ca-root-cert")
  "clusterTrustBundle" (and (not $distribution.disabled) (ne ($distribution.clusterTrustBundle | default "auto") "off"))
  "istiod" (dict
    "enabled" ($istiod.enabled | default false)
    "namespace" ($istiod.namespace | default "istio-system")
    "name" ($istiod.name | default "istiod-dynamic"))
  "nodes" ($nodes.accounts | empty | not)
  "certificates" ($certificates.enabled | default false)
  "local" (eq ($token.authentication | default "review") "local")
  "rulesByLabels" $byLabels
  "registration" ($registration.enabled | default false)
  "registrationDomain" ($registration.signerName | default "signet.dev/mesh" | splitList "/" | first)
  "remoteClusters" ($remote.namespace | default "")
  "api" $apiOn
  "probes" (and $apiOn (not $probes.disabled))
  "gateways" $gatewaysOn
  "gatewayCertificates" (and $gatewaysOn (not $gateways.withoutCertificates))
  "gatewaySecrets" (ternary ($gateways.readSecrets | default list) list $gatewaysOn | uniq)
  "ledger" ($ledger.dir | default "/var/lib/signet")
  "dsnFile" ($postgres.dsnFile | default "")
  "dsnEnv" ($postgres.dsnEnv | default "")
  "auditFile" (ternary "" ($audit.output | default "") (eq ($audit.output | default "") "stdout"))
  "files" $files
  "outsidePorts" (uniq $outside)
  "service" ($serving.service | default "signet")
  "dnsNames" ($serving.dnsNames | default list)
  "clusterDomain" ($serving.clusterDomain | default "cluster.local")
  "issuerName" ($issuer.name | default "")
  "replica" ($c.replica | default "")
  "delaySeconds" $delay
  "drainSeconds" $drain | toJson -}}
{{- end }}

{{- /* A duration such as 1m30s in seconds, rounded up. */}}
{{- define "signet.seconds" -}}
{{- $epoch := toDate "2006-01-02" "2000-01-01" -}}
{{- sub (mustDateModify "999ms" (mustDateModify . $epoch) | unixEpoch) ($epoch | unixEpoch) -}}
{{- end }}
