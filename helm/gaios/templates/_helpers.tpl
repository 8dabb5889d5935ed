{{/*
Names, labels and what pods of both roles share. What a helper takes is the root context, or a dict that says so.
*/}}

{{- define "gaios.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Forty letters leave room for what is put behind: the name of a pod is at most 63. */}}
{{- define "gaios.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "gaios.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Takes (dict "root" $ "component" "node"). */}}
{{- define "gaios.selectorLabels" -}}
app.kubernetes.io/name: {{ include "gaios.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Takes (dict "root" $ "component" "node"). */}}
{{- define "gaios.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "gaios.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: {{ .root.Values.cluster.name }}
{{- end -}}

{{- define "gaios.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Takes (dict "root" $ "component" "node"). */}}
{{- define "gaios.serviceAccountName" -}}
{{- if .root.Values.serviceAccount.create -}}
{{- printf "%s-%s" (include "gaios.fullname" .root) .component -}}
{{- else -}}
{{- required "serviceAccount.name is needed with serviceAccount.create: false" .root.Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "gaios.priorityClassName" -}}
{{- if .Values.priorityClass.create -}}
{{- include "gaios.fullname" . -}}
{{- else -}}
{{- .Values.priorityClass.name -}}
{{- end -}}
{{- end -}}

{{/* Of every pod. The group owns the volumes; the user and group are those of the image. */}}
{{- define "gaios.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
# Files are their owner's alone; a change of all of them at every mount would open them to the group.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Of every container. */}}
{{- define "gaios.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Where nodes are named in the DNS of this Kubernetes cluster. */}}
{{- define "gaios.nodesServiceDomain" -}}
{{- printf "%s-nodes.%s.svc.%s" (include "gaios.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{/* Where they are for everybody. */}}
{{- define "gaios.nodesDomain" -}}
{{- default (include "gaios.nodesServiceDomain" .) .Values.nodes.domain -}}
{{- end -}}

{{- define "gaios.clientDomain" -}}
{{- printf "%s.%s.svc.%s" (include "gaios.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{/* Where each gateway by itself is named, by the headless Service. */}}
{{- define "gaios.gatewaysDomain" -}}
{{- printf "%s-gateways.%s.svc.%s" (include "gaios.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{/* The ids of this release's nodes, as a JSON list. */}}
{{- define "gaios.nodeIds" -}}
{{- $ids := list -}}
{{- if .Values.nodes.enabled -}}
{{- range until (int .Values.nodes.replicas) -}}
{{- $ids = append $ids (add $.Values.nodes.firstId .) -}}
{{- end -}}
{{- end -}}
{{- toJson $ids -}}
{{- end -}}

{{/* `cluster` of a node's configuration. */}}
{{- define "gaios.clusterConfig" -}}
{{- $nodes := list -}}
{{- range include "gaios.nodeIds" . | fromJsonArray -}}
{{- $pod := printf "%s-node-%d" (include "gaios.fullname" $) (int .) -}}
{{- $node := dict "id" (int .) "address" (printf "%s.%s:2380" $pod (include "gaios.nodesDomain" $)) -}}
{{- with $.Values.region -}}
{{- $_ := set $node "region" . -}}
{{- end -}}
{{- $nodes = append $nodes $node -}}
{{- end -}}
{{- $cluster := dict "name" .Values.cluster.name "nodes" (concat $nodes .Values.cluster.otherNodes) -}}
{{- with .Values.cluster.groups -}}
{{- $_ := set $cluster "groups" . -}}
{{- end -}}
{{- toYaml $cluster -}}
{{- end -}}

{{/*
`cluster` of a gateway's configuration. It finds nodes by DNS: those of this release by the SRV records of their headless
Service, others by what the values say. From one that answers it learns of all.
*/}}
{{- define "gaios.gatewayClusterConfig" -}}
{{- $seeds := list -}}
{{- if .Values.nodes.enabled -}}
{{- $seeds = append $seeds (printf "_gaios-replica._tcp.%s" (include "gaios.nodesServiceDomain" .)) -}}
{{- end -}}
{{- range .Values.cluster.otherNodes -}}
{{- $seeds = append $seeds .address -}}
{{- end -}}
{{- $seeds = concat $seeds .Values.cluster.seeds | uniq -}}
{{- if not $seeds -}}
{{- fail "gateways without nodes need cluster.seeds or cluster.otherNodes: where nodes are" -}}
{{- end -}}
{{- dict "name" .Values.cluster.name "seeds" $seeds | toYaml -}}
{{- end -}}

{{- define "gaios.replicaConfig" -}}
{{- $own := dict
  "role" "replica"
  "data_dir" "/var/lib/gaios/data"
  "listen" (printf "%s:2380" .Values.listenIp)
  "admin_listen" (printf "%s:2381" .Values.listenIp)
  "cluster" (include "gaios.clusterConfig" . | fromYaml)
-}}
{{- with .Values.region -}}
{{- $_ := set $own "region" . -}}
{{- end -}}
{{- if include "gaios.tls" . -}}
{{- $_ := set $own "link_tls" (include "gaios.linkTls" "node-{node}" | fromYaml) -}}
{{- else -}}
{{- $_ := set $own "insecure" true -}}
{{- end -}}
{{- mergeOverwrite (deepCopy .Values.nodes.config) $own | toYaml -}}
{{- end -}}

{{- define "gaios.gatewayConfig" -}}
{{- $scheme := printf "%s://" (include "gaios.scheme" .) -}}
{{- range .Values.gateways.advertiseClientUrls -}}
{{- if not (hasPrefix $scheme .) -}}
{{- fail (printf "gateways.advertiseClientUrls: %s must begin with %s, by tls.mode %s" . $scheme $.Values.tls.mode) -}}
{{- end -}}
{{- end -}}
{{- $url := printf "%s://%s:2379" (include "gaios.scheme" .) (include "gaios.clientDomain" .) -}}
{{- $own := dict
  "role" "gateway"
  "listen" (printf "%s:2379" .Values.listenIp)
  "admin_listen" (printf "%s:2378" .Values.listenIp)
  "advertise_client_urls" (default (list $url) .Values.gateways.advertiseClientUrls)
  "cluster" (include "gaios.gatewayClusterConfig" . | fromYaml)
-}}
{{- with .Values.region -}}
{{- $_ := set $own "region" . -}}
{{- end -}}
{{- if include "gaios.tls" . -}}
{{- $_ := set $own "link_tls" (include "gaios.linkTls" (include "gaios.gatewayFile" .) | fromYaml) -}}
{{- $_ := set $own "client_tls" (include "gaios.clientTls" . | fromYaml) -}}
{{- end -}}
{{- mergeOverwrite (deepCopy .Values.gateways.config) $own | toYaml -}}
{{- end -}}

{{/* The name of the port for clients is what `etcdctl --discovery-srv` asks for. */}}
{{- define "gaios.clientPortName" -}}
{{- ternary "etcd-client-ssl" "etcd-client" (ne .Values.tls.mode "none") -}}
{{- end -}}

{{/* Scheduling that both roles take from their section of the values. Takes that section. */}}
{{- define "gaios.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* For scrapers that find pods by their annotations. Takes the number of the port. */}}
{{- define "gaios.scrapeAnnotations" -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ . | quote }}
prometheus.io/path: /metrics
{{- end -}}

{{- define "gaios.clientAppProtocol" -}}
{{- ternary "https" "kubernetes.io/h2c" (ne .Values.tls.mode "none") -}}
{{- end -}}
