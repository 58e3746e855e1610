{{/* Secret with the certificate that our scheduler shows the extender, and the CA of the extender's own. */}}
{{- define "migcompat.schedulerClientSecret" -}}
{{- .Values.scheduler.clientSecret | default (printf "%s-scheduler-client" (include "migcompat.fullname" .)) -}}
{{- end -}}

{{/*
The cluster's version as kube-scheduler's image has it: vendors append what no image is named after (v1.33.1+k3s1,
v1.33.1-gke.1146000); alpha, beta and rc are Kubernetes' own.
*/}}
{{- define "migcompat.schedulerImage" -}}
{{- $image := .Values.scheduler.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- $version := regexFind "^v[0-9]+\\.[0-9]+\\.[0-9]+(-(alpha|beta|rc)\\.[0-9]+)?" .Capabilities.KubeVersion.Version -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $version) -}}
{{- end -}}
{{- end -}}

{{/* What kube-scheduler reads. */}}
{{- define "migcompat.schedulerConfiguration" -}}
{{- $name := include "migcompat.componentName" (list . "scheduler") -}}
{{- $service := printf "%s.%s.svc" (include "migcompat.componentName" (list . "extender")) .Release.Namespace -}}
{{- $host := .Values.extender.clusterIP | default $service -}}
{{- $host = ternary (printf "[%s]" $host) $host (contains ":" $host) -}}
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection:
  leaderElect: true
  resourceName: {{ $name }}
  resourceNamespace: {{ .Release.Namespace }}
profiles:
  - schedulerName: {{ .Values.scheduler.schedulerName }}
# No sample of the nodes: all of them. Only migrations' target pods come here, and they are few.
percentageOfNodesToScore: 100
extenders:
  # By the Service's address where it is fixed: that needs no cluster DNS. The certificate is good for the name.
  - urlPrefix: https://{{ $host }}:{{ .Values.extender.servicePort }}
    filterVerb: filter
    prioritizeVerb: prioritize
    weight: 10
    enableHTTPS: true
    tlsConfig:
      serverName: {{ $service }}
      caFile: /etc/migcompat/tls/ca.crt
      certFile: /etc/migcompat/tls/tls.crt
      keyFile: /etc/migcompat/tls/tls.key
    httpTimeout: 2s
    nodeCacheCapable: true
    # When no extender can be reached, the target is placed where the webhook's names allow it: the agents guard.
    ignorable: true
    # No managedResources: every pod that comes here is a target.
{{- end -}}
