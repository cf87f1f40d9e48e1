{{/* Those that name a VIP take (dict "root" $ "vip" an entry of vips). */}}

{{- define "kevip.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name -}}
{{- end }}

{{- define "kevip.name" -}}
{{- $name := printf "%s-%s" (include "kevip.fullname" .root) .vip.name -}}
{{- if gt (len $name) 63 }}{{ fail (printf "vips: %s is longer than the 63 characters that Kubernetes takes" $name) }}{{ end -}}
{{- $name -}}
{{- end }}

{{/* A VIP is an instance of its own: two of one release must not count as replicas of each other. */}}
{{- define "kevip.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Values.nameOverride | default "kevip" | quote }}
app.kubernetes.io/instance: {{ include "kevip.name" . | quote }}
{{- end }}

{{- define "kevip.releaseLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "kevip.metadata" -}}
name: {{ include "kevip.name" . | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "kevip.selectorLabels" . | nindent 2 }}
  app.kubernetes.io/component: virtual-ip
  {{- include "kevip.releaseLabels" .root | nindent 2 }}
{{- end }}

{{/* Of what there is one for all VIPs: takes (dict "root" $ "name" "alerts" "labels" what users add). */}}
{{- define "kevip.sharedMetadata" -}}
name: {{ printf "%s-%s" (include "kevip.fullname" .root) .name | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- $labels := include "kevip.releaseLabels" .root | fromYaml }}
  {{- $_ := set $labels "app.kubernetes.io/name" (.root.Values.nameOverride | default "kevip") }}
  {{- $_ := set $labels "app.kubernetes.io/instance" .root.Release.Name }}
  {{- merge $labels (.labels | default dict) | toYaml | nindent 2 }}
{{- end }}

{{/* What a VIP sets of its own stands instead of what is set for all. */}}
{{- define "kevip.workload" -}}
{{- $found := dict -}}
{{- range list "replicas" "podAnnotations" "podLabels" "priorityClassName" "resources" "nodeSelector" "tolerations" "affinity" "extraEnv" -}}
{{- $_ := set $found . (get (hasKey $.vip . | ternary $.vip $.root.Values) .) -}}
{{- end -}}
{{- $found | toJson -}}
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

{{- define "kevip.image" -}}
{{- .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}
