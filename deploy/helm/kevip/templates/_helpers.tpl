{{/* All take (dict "root" $ "vip" an entry of vips). */}}

{{- define "kevip.name" -}}
{{- $name := printf "%s-%s" .root.Release.Name .vip.name -}}
{{- if gt (len $name) 63 }}{{ fail (printf "vips: %s is longer than the 63 characters that Kubernetes takes" $name) }}{{ end -}}
{{- $name -}}
{{- end }}

{{/* A VIP is an instance of its own: two of one release must not count as replicas of each other. */}}
{{- define "kevip.selectorLabels" -}}
app.kubernetes.io/name: kevip
app.kubernetes.io/instance: {{ include "kevip.name" . | quote }}
{{- end }}

{{- define "kevip.metadata" -}}
name: {{ include "kevip.name" . | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "kevip.selectorLabels" . | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Two on one node do not hear each other. */}}
{{- define "kevip.affinity" -}}
podAntiAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- include "kevip.selectorLabels" . | nindent 10 }}
{{- end }}
