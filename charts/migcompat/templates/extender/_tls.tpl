{{/* Secret that the extender's certificate lies in. */}}
{{- define "migcompat.extenderSecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "migcompat.componentName" (list . "extender"))) -}}
{{- end -}}

{{/* Secret with kube-scheduler's client certificate. */}}
{{- define "migcompat.clientSecret" -}}
{{- printf "%s-scheduler-client" (include "migcompat.fullname" .) -}}
{{- end -}}

{{/* Whether the operator renews certificates: "true" or nothing. */}}
{{- define "migcompat.keepsCertificates" -}}
{{- if and .Values.operator.enabled .Values.extender.enabled (not .Values.tls.existingSecret) -}}true{{- end -}}
{{- end -}}

{{/* Bundle of authorities that is there (base64), or only ours where that is not in it; call with (list $ca $bundle). */}}
{{- define "migcompat.bundle" -}}
{{- $ca := index . 0 -}}
{{- $there := index . 1 | default "" -}}
{{- if contains (trim $ca.Cert) (b64dec $there) -}}
{{- $there -}}
{{- else -}}
{{- $ca.Cert | b64enc -}}
{{- end -}}
{{- end -}}

{{/* Host of extender.url without its port, empty without a url. */}}
{{- define "migcompat.urlHost" -}}
{{- if .Values.extender.url -}}
{{- (urlParse .Values.extender.url).host | regexFind "^(\\[[^]]+\\]|[^:]+)" | trimPrefix "[" | trimSuffix "]" -}}
{{- end -}}
{{- end -}}

{{/* Names and addresses that the extender's certificate is good for, as JSON: {"dns": […], "ips": […]}. */}}
{{- define "migcompat.certificateNames" -}}
{{- $service := include "migcompat.componentName" (list . "extender") -}}
{{- $namespaced := printf "%s.%s" $service .Release.Namespace -}}
{{- $dns := list $service $namespaced (printf "%s.svc" $namespaced) (printf "%s.svc.cluster.local" $namespaced) "localhost" -}}
{{- $ips := list "127.0.0.1" -}}
{{- $extra := concat .Values.tls.extraNames (compact (list .Values.extender.clusterIP (include "migcompat.urlHost" .))) -}}
{{- range $extra -}}
{{- if regexMatch "^([0-9.]+|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*)$" . -}}
{{- $ips = append $ips . -}}
{{- else -}}
{{- $dns = append $dns . -}}
{{- end -}}
{{- end -}}
{{- dict "dns" (uniq $dns | sortAlpha) "ips" (uniq $ips | sortAlpha) | toJson -}}
{{- end -}}
