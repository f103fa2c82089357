{{- define "tinyfleet.coordinator.toml" -}}
fleet = {{ .Values.fleet | quote }}
store = "file:/run/secrets/tinyfleet/store.url"
work = "/var/lib/tinyfleet/flower"

[api]
host = "0.0.0.0"
port = 8443
certificate = "/run/secrets/tinyfleet/tls.crt"
key = "/run/secrets/tinyfleet/tls.key"

[superlink]
host = "0.0.0.0"
port = 9092
certificate = "/run/secrets/tinyfleet/tls.crt"
key = "/run/secrets/tinyfleet/tls.key"
ca = "/run/secrets/tinyfleet/ca.crt"
gateway_keys = "/run/gateway-keys"

[retention]
{{- with .Values.coordinator.retention }}
{{- if .reportsDays }}
reports_days = {{ .reportsDays }}
{{- end }}
{{- if .eventsDays }}
events_days = {{ .eventsDays }}
{{- end }}
{{- if .weightsDays }}
weights_days = {{ .weightsDays }}
{{- end }}
{{- end }}

[bootstrap]
{{- if .Values.coordinator.adminToken }}
token_file = "/run/secrets/tinyfleet/admin.token"
{{- end }}

[bootstrap.gateways]
{{- range $site := .Values.sites }}
{{- range .gateways }}
{{ .name }} = {{ $site.name | quote }}
{{- end }}
{{- end }}
{{- with .Values.coordinator.settings }}

{{ . }}
{{- end }}
{{ end -}}

{{/* Takes (list root site index gateway). */}}
{{- define "tinyfleet.gateway.toml" -}}
{{- $root := index . 0 -}}
{{- $site := index . 1 -}}
{{- $number := index . 2 -}}
{{- $gateway := index . 3 -}}
{{- $broker := $site.broker -}}
fleet = {{ $root.Values.fleet | quote }}
gateway = {{ $gateway.name | quote }}
store = "/var/lib/tinyfleet/gateway.sqlite"
socket = "/tmp/gateway.sock"
{{- if gt (len $site.gateways) 1 }}
share = "{{ add1 $number }}/{{ len $site.gateways }}"
{{- end }}
superlink = "{{ include "tinyfleet.name" $root }}-superlink.{{ $root.Release.Namespace }}.svc:9092"
superlink_ca = "/etc/tinyfleet/ca.crt"
superlink_key = "/run/secrets/tinyfleet/gateway.key"

[broker]
user = {{ $gateway.name | quote }}
password_file = "/run/secrets/tinyfleet/gateway.password"
{{- if not $broker.bundled }}
host = {{ $broker.host | quote }}
port = {{ int $broker.port }}
ca_file = "/etc/tinyfleet/broker-ca.crt"
{{- else if eq $number 0 }}
host = "127.0.0.1"
port = 1883
folder = "/broker"
{{- else }}
host = "{{ include "tinyfleet.name" $root }}-broker-{{ $site.name }}.{{ $root.Release.Namespace }}.svc"
port = 8883
ca_file = "/etc/tinyfleet/broker-ca.crt"
{{- end }}

[metrics]
host = "0.0.0.0"
port = 9464
{{- with $root.Values.gateway.settings }}

{{ . }}
{{- end }}
{{ end -}}
