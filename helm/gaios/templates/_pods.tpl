{{/*
Parts of the pods: what the check of the configuration and the process itself have in common, so that what was checked is what runs.
*/}}

{{/* Which node it is: the number of the pod. */}}
{{- define "gaios.nodeEnv" -}}
{{ include "gaios.gatewayEnv" . }}
  - name: GAIOS_NODE
    valueFrom:
      fieldRef:
        fieldPath: metadata.labels['apps.kubernetes.io/pod-index']
{{- end -}}

{{/* Who it is, and where: from version 1.35 on, Kubernetes labels a pod with the zone of its machine. Before, there is none. */}}
{{- define "gaios.gatewayEnv" -}}
env:
  - name: GAIOS_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: GAIOS_ZONE
    valueFrom:
      fieldRef:
        fieldPath: metadata.labels['topology.kubernetes.io/zone']
{{- end -}}

{{- define "gaios.configMounts" -}}
- {name: config, mountPath: /etc/gaios/config, readOnly: true}
{{- if include "gaios.tls" . }}
- {name: tls, mountPath: /etc/gaios/tls, readOnly: true}
{{- end }}
{{- end -}}

{{/*
A container that runs `etcdctl`, which finds gateways by the SRV records of a domain.
Takes (dict "root" $ "domain" "name" "command" (list "put" "key" "value")).
*/}}
{{- define "gaios.etcdctl" -}}
image: {{ .root.Values.tests.etcdctlImage }}
command: [etcdctl]
args:
  - --discovery-srv={{ .domain }}
  {{- if include "gaios.tls" .root }}
  - --cacert=/etc/gaios/tls/ca.crt
  {{- if ne .root.Values.tls.clients.auth "off" }}
  - --cert=/etc/gaios/tls/client.crt
  - --key=/etc/gaios/tls/client.key
  {{- end }}
  {{- else }}
  - --insecure-discovery
  {{- end }}
  {{- range .command }}
  - {{ . | quote }}
  {{- end }}
securityContext:
  {{- include "gaios.securityContext" .root | nindent 2 }}
resources:
  requests: {cpu: 10m, memory: 32Mi}
  limits: {memory: 128Mi}
{{- if include "gaios.tls" .root }}
volumeMounts:
  - {name: tls, mountPath: /etc/gaios/tls, readOnly: true}
{{- end }}
{{- end -}}
