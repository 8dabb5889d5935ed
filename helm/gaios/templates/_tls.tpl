{{/*
Where certificates come from. In the pods, files have the names that `gaios ctl certs make` gives them, whoever made them.
*/}}

{{- define "gaios.tls" -}}
{{- if ne .Values.tls.mode "none" -}}true{{- end -}}
{{- end -}}

{{- define "gaios.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.mode "none") -}}
{{- end -}}

{{/* What all gateways of a release call themselves in their certificate: their region. */}}
{{- define "gaios.gatewayIdentity" -}}
{{- default (include "gaios.fullname" .) .Values.region -}}
{{- end -}}

{{/* Whether all certificates of a release are in one Secret, as `gaios ctl certs` makes it. */}}
{{- define "gaios.oneSecret" -}}
{{- if has .Values.tls.mode (list "hook" "secret") -}}true{{- end -}}
{{- end -}}

{{- define "gaios.tlsSecretName" -}}
{{- default (printf "%s-tls" (include "gaios.fullname" .)) .Values.tls.secretName -}}
{{- end -}}

{{- define "gaios.authoritySecretName" -}}
{{- default (printf "%s-ca" (include "gaios.tlsSecretName" .)) .Values.tls.hook.authoritySecretName -}}
{{- end -}}

{{/* What `gaios ctl certs make` is told of this release, as a JSON list. */}}
{{- define "gaios.certsArgs" -}}
{{- $args := list (printf "--cluster=%s" .Values.cluster.name) -}}
{{- with include "gaios.nodeIds" . | fromJsonArray -}}
{{- $args = append $args (printf "--nodes=%s" (join "," .)) -}}
{{- end -}}
{{- if .Values.gateways.enabled -}}
{{- $args = append $args (printf "--gateways=%s" (include "gaios.gatewayIdentity" .)) -}}
{{- $args = append $args (printf "--names=%s" (include "gaios.serverNames" . | fromJsonArray | join ",")) -}}
{{- end -}}
{{- toJson $args -}}
{{- end -}}

{{/* Names under which clients reach this release's gateways, as a JSON list. */}}
{{- define "gaios.serverNames" -}}
{{- $names := list -}}
{{- range list "" "-gateways" "-external" -}}
{{- $service := printf "%s%s" (include "gaios.fullname" $) . -}}
{{- $names = concat $names (list $service (printf "%s.%s" $service $.Release.Namespace) (printf "%s.%s.svc" $service $.Release.Namespace) (printf "%s.%s.svc.%s" $service $.Release.Namespace $.Values.clusterDomain)) -}}
{{- end -}}
{{- $names = append $names (printf "*.%s-gateways.%s.svc.%s" (include "gaios.fullname" .) .Release.Namespace .Values.clusterDomain) -}}
{{- $names = concat $names (list "localhost") .Values.tls.clients.dnsNames .Values.gateways.tlsRoute.hostnames -}}
{{- range .Values.gateways.advertiseClientUrls -}}
{{- $names = append $names (urlParse .).hostname -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end -}}

{{/*
The files of one certificate, from wherever it is, as sources of a projected volume.
Takes (dict "root" $ "files" (list "node-1")).
*/}}
{{- define "gaios.tlsSources" -}}
{{- $root := .root -}}
{{- if include "gaios.oneSecret" $root -}}
- secret:
    name: {{ include "gaios.tlsSecretName" $root }}
    items:
      {{- range .files }}
      - {key: {{ . }}.crt, path: {{ . }}.crt}
      - {key: {{ . }}.key, path: {{ . }}.key}
      {{- end }}
      - {key: ca.crt, path: ca.crt}
{{- else -}}
{{- range $index, $file := .files }}
- secret:
    name: {{ include "gaios.fullname" $root }}-{{ $file }}-tls
    items:
      - {key: tls.crt, path: {{ $file }}.crt}
      - {key: tls.key, path: {{ $file }}.key}
      {{- /* The CA is the same for all members; a server's may be another, and is not asked for here. */}}
      {{- if not $index }}
      - {key: ca.crt, path: ca.crt}
      {{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Keys of session tickets, as a source. */}}
{{- define "gaios.ticketSources" -}}
{{- if include "gaios.oneSecret" . -}}
- secret:
    name: {{ include "gaios.tlsSecretName" . }}
    items:
      - {key: tickets.keys, path: tickets.keys}
{{- else -}}
{{- with .Values.tls.certManager.ticketsSecretName -}}
- secret:
    name: {{ . }}
    items:
      - {key: tickets.keys, path: tickets.keys}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The volume with a node's certificates. One pod template serves all nodes, so each pod has those of this release's nodes. */}}
{{- define "gaios.nodeTlsVolume" -}}
{{- $files := list -}}
{{- range include "gaios.nodeIds" . | fromJsonArray -}}
{{- $files = append $files (printf "node-%d" (int .)) -}}
{{- end -}}
- name: tls
  projected:
    # For the group of the pod; no other user is in there.
    defaultMode: 0440
    sources:
      {{- include "gaios.tlsSources" (dict "root" . "files" $files) | trim | nindent 6 }}
{{- end -}}

{{- define "gaios.gatewayTlsVolume" -}}
- name: tls
  projected:
    defaultMode: 0440
    sources:
      {{- include "gaios.tlsSources" (dict "root" . "files" (list (include "gaios.gatewayFile" .) "server")) | trim | nindent 6 }}
      {{- with include "gaios.ticketSources" . }}
      {{- . | nindent 6 }}
      {{- end }}
{{- end -}}

{{/* As `gaios ctl certs make --gateways` names the files of a gateway. */}}
{{- define "gaios.gatewayFile" -}}
gateway-{{ include "gaios.gatewayIdentity" . }}
{{- end -}}

{{/* What a client outside the pods of the cluster needs. */}}
{{- define "gaios.testTlsVolume" -}}
- name: tls
  projected:
    defaultMode: 0440
    sources:
      {{- if include "gaios.oneSecret" . }}
      {{- include "gaios.tlsSources" (dict "root" . "files" (list "client")) | trim | nindent 6 }}
      {{- else }}
      - secret:
          name: {{ include "gaios.fullname" . }}-server-tls
          items:
            - {key: ca.crt, path: ca.crt}
      - secret:
          name: {{ include "gaios.fullname" . }}-client-tls
          items:
            - {key: tls.crt, path: client.crt}
            - {key: tls.key, path: client.key}
      {{- end }}
{{- end -}}

{{/* `link_tls` of a configuration. Takes the name of the files. */}}
{{- define "gaios.linkTls" -}}
cert_file: /etc/gaios/tls/{{ . }}.crt
key_file: /etc/gaios/tls/{{ . }}.key
ca_file: /etc/gaios/tls/ca.crt
{{- end -}}

{{/* `client_tls` of a configuration. */}}
{{- define "gaios.clientTls" -}}
cert_file: /etc/gaios/tls/server.crt
key_file: /etc/gaios/tls/server.key
client_auth: {{ .Values.tls.clients.auth | quote }}
{{- if ne .Values.tls.clients.auth "off" }}
client_ca_file: /etc/gaios/tls/ca.crt
{{- end }}
min_version: {{ .Values.tls.clients.minVersion | quote }}
{{- if include "gaios.ticketSources" . }}
ticket_keys_file: /etc/gaios/tls/tickets.keys
{{- end }}
{{- end -}}
