{{/* Name of the chart's objects: the release's name, with the chart's where it is not in there already. */}}
{{- define "migcompat.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "migcompat" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-migcompat" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of a component's objects; call with (list $ "device-plugin"). */}}
{{- define "migcompat.componentName" -}}
{{- printf "%s-%s" (include "migcompat.fullname" (index . 0)) (index . 1) -}}
{{- end -}}

{{/* Labels that select a component's pods; call with (list $ "device-plugin"). */}}
{{- define "migcompat.selectorLabels" -}}
app.kubernetes.io/name: migcompat
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* All labels of a component's objects; call with (list $ "device-plugin"). */}}
{{- define "migcompat.labels" -}}
{{- $root := index . 0 -}}
{{ include "migcompat.selectorLabels" . }}
app.kubernetes.io/part-of: migcompat
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Names of all that the catalogue has, as a JSON list. */}}
{{- define "migcompat.catalogue" -}}
{{- $names := list -}}
{{- range $path, $_ := .Files.Glob "files/catalogue/*.yaml" -}}
{{- $names = append $names (base $path | trimSuffix ".yaml") -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/* Names of the policies that these become, as a JSON list. */}}
{{- define "migcompat.cataloguePolicies" -}}
{{- $names := list -}}
{{- range include "migcompat.catalogue" . | fromJsonArray -}}
{{- $names = append $names (printf "catalogue-%s" .) -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{- define "migcompat.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* What the pods of all components have in common; call with (list $ $componentValues "device-plugin"). */}}
{{- define "migcompat.podSpec" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
serviceAccountName: {{ include "migcompat.componentName" (list $root (index . 2)) }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Downward API: who and where the process is. */}}
{{- define "migcompat.env" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end -}}

{{/* Probes on the health port. A process that works through a first large list is alive but not ready. */}}
{{- define "migcompat.probes" -}}
livenessProbe:
  httpGet:
    path: /healthz
    port: health
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: health
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end -}}

{{/* Security context of a container that needs no privilege at all. */}}
{{- define "migcompat.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Annotations of what exists only while the release is being uninstalled; call with the hook's weight. */}}
{{- define "migcompat.preDelete" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end -}}
