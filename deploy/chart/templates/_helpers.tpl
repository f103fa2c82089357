{{/* In front of all names. Longer, and a gateway's labels wouldn't fit into 63 characters. */}}
{{- define "tinyfleet.name" -}}
{{- if gt (len .Release.Name) 16 -}}
{{- fail (printf "the release's name %q is longer than 16 characters: choose a shorter one, since gateways' names stand behind it" .Release.Name) -}}
{{- end -}}
{{- .Release.Name -}}
{{- end -}}

{{- define "tinyfleet.selector" -}}
app.kubernetes.io/name: tinyfleet
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tinyfleet.labels" -}}
{{ include "tinyfleet.selector" . }}
app.kubernetes.io/part-of: tinyfleet
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* Takes (list root image). */}}
{{- define "tinyfleet.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $where := printf "%s%s" $root.Values.images.registry $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $where $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $where ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* What all pods have: the restricted Pod Security Standard, and no token of the cluster. */}}
{{- define "tinyfleet.pod" -}}
serviceAccountName: {{ include "tinyfleet.name" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with .Values.scheduling.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.scheduling.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.scheduling.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Takes (list root image). */}}
{{- define "tinyfleet.container" -}}
image: {{ include "tinyfleet.image" . }}
imagePullPolicy: {{ (index . 0).Values.images.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Pods of one kind on nodes and zones of their own, where there are. Takes their labels. */}}
{{- define "tinyfleet.spread" -}}
topologySpreadConstraints:
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {{ toJson $ }}}
{{- end }}
{{- end -}}

{{/* Takes (list name storage). Nothing in it may change with a version. */}}
{{- define "tinyfleet.claim" -}}
- metadata: {name: {{ index . 0 }}}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with (index . 1).className }}
    storageClassName: {{ . }}
    {{- end }}
    resources: {requests: {storage: {{ (index . 1).size }}}}
{{- end -}}

{{/* Of the volume with what the coordinator keeps secret. */}}
{{- define "tinyfleet.coordinator.secrets" -}}
projected:
  defaultMode: 0440
  sources:
    - configMap: {name: {{ .Values.authority }}, items: [{key: ca.crt, path: ca.crt}]}
    - secret:
        name: {{ .Values.coordinator.certificate }}
        items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
    - secret: {name: {{ .Values.coordinator.store }}, items: [{key: store.url, path: store.url}]}
    {{- with .Values.coordinator.adminToken }}
    - secret: {name: {{ . }}, items: [{key: admin.token, path: admin.token}]}
    {{- end }}
{{- end -}}

{{/* Sites whose gateways are in the cluster, with all that is left out filled in. As JSON. */}}
{{- define "tinyfleet.here" -}}
{{- $sites := list -}}
{{- $known := list -}}
{{- $names := dict -}}
{{- range .Values.sites -}}
{{- $site := . -}}
{{- if has .name $known -}}
{{- fail (printf "sites: two have the name %q: rename one" .name) -}}
{{- end -}}
{{- $known = append $known .name -}}
{{- range .gateways -}}
{{- if hasKey $names .name -}}
{{- fail (printf "sites: two gateways have the name %q: rename one" .name) -}}
{{- end -}}
{{- $_ := set $names .name $site.name -}}
{{- end -}}
{{- $said := dig "broker" dict . -}}
{{- if and $said (not (dig "here" true .)) -}}
{{- fail (printf "sites: the gateways of %s aren't here, nor is its broker: leave away its broker, or here: false" .name) -}}
{{- end -}}
{{- if and (dig "bundled" true $said) (or $said.host $said.port $said.peers $said.authority) -}}
{{- fail (printf "sites: the broker of %s is bundled: leave away its host, port, peers and authority, or say bundled: false" .name) -}}
{{- end -}}
{{- if dig "here" true . -}}
{{- $broker := merge (dict) $said (dict "bundled" true "port" 8883 "authority" "" "certificate" (printf "tinyfleet-broker-%s" .name) "service" (dict "type" "ClusterIP" "annotations" dict) "peers" (list (dict "ipBlock" (dict "cidr" "0.0.0.0/0")))) -}}
{{- $_ := set $broker "bundled" (dig "bundled" true $said) -}}
{{- $sites = append $sites (dict "name" .name "gateways" .gateways "broker" $broker) -}}
{{- end -}}
{{- end -}}
{{- toJson $sites -}}
{{- end -}}
