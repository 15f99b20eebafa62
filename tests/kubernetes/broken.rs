//! The checks can fail: good manifests, each broken in one place, and what has to be said of it.

use crate::documents::{self, parse};
use crate::{metrics, pods, references};

const GOOD: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: trialhead }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: some-account, namespace: trialhead }
automountServiceAccountToken: false
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: deny, namespace: trialhead }
spec: { podSelector: {}, policyTypes: [Ingress, Egress] }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: allow, namespace: trialhead }
spec:
  podSelector: { matchLabels: { app: api } }
  policyTypes: [Ingress]
  ingress:
    - from: [{ podSelector: { matchExpressions: [{ key: app, operator: In, values: [api] }] } }]
      ports: [{ port: http }]
---
apiVersion: v1
kind: Service
metadata: { name: trialhead, namespace: trialhead, labels: { app: api } }
spec:
  selector: { app: api }
  ports: [{ name: web, port: 8080, targetPort: http }]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: { name: budget, namespace: trialhead }
spec: { maxUnavailable: 1, selector: { matchLabels: { app: api } } }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: trialhead-worker-cpu, namespace: trialhead }
spec:
  selector: { matchLabels: { app: api } }
  template:
    metadata: { labels: { app: api } }
    spec:
      serviceAccountName: some-account
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 60
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        seccompProfile: { type: RuntimeDefault }
      topologySpreadConstraints:
        - { maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway, labelSelector: { matchLabels: { app: api } } }
      containers:
        - name: one
          image: registry:5000/trialhead:0.1.0
          args: ["work", "--server", "http://trialhead:8080", "--once"]
          env:
            - { name: DATABASE_HOST, valueFrom: { secretKeyRef: { name: trialhead-database, key: host } } }
            - { name: DATABASE_URL, value: "postgres://$(DATABASE_HOST)/x" }
            - { name: TRIALHEAD_POOL__DEVICES, value: cpu }
            - { name: TRIALHEAD_POOL__DRAIN_SECS, value: "30" }
            - { name: TRIALHEAD_WORK__LISTEN, value: "0.0.0.0:8080" }
            - { name: TRIALHEAD_WORK__ONCE_EMPTY_EXIT_CODE, value: "0" }
          envFrom:
            - secretRef: { name: trialhead-datasets, optional: true }
          ports: [{ name: http, containerPort: 8080 }]
          startupProbe: { httpGet: { path: /healthz, port: http } }
          readinessProbe: { httpGet: { path: /readyz, port: http } }
          resources: { requests: { cpu: "4", memory: 8Gi }, limits: { cpu: "4", memory: 8Gi } }
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: { drop: ["ALL"] }
          volumeMounts: [{ name: data, mountPath: /data }]
      volumes:
        - { name: data, emptyDir: { sizeLimit: 1Gi } }
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata: { name: monitor, namespace: trialhead }
spec:
  selector: { matchLabels: { app: api } }
  endpoints: [{ port: web, path: /metrics, interval: 15s }]
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: { name: pods, namespace: trialhead }
spec:
  selector: { matchLabels: { app: api } }
  podMetricsEndpoints: [{ port: http, path: /metrics }]
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: { name: rules, namespace: trialhead }
spec:
  groups:
    - name: some
      rules:
        - alert: Some
          expr: max by (backend) (trialhead_queue_depth{backend!="cpu"}) > 0
          for: 5m
          labels: { severity: warning }
          annotations:
            summary: Something that is long enough
            description: Something that is long enough
            runbook: Something that is long enough
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: { name: scaled, namespace: trialhead }
spec:
  scaleTargetRef: { name: trialhead-worker-cpu }
  maxReplicaCount: 8
  triggers:
    - type: prometheus
      metadata: { serverAddress: "http://prometheus:9090", query: sum(trialhead_queue_depth) or 0 * max(trialhead_studies), threshold: "1" }
"#;

/// Everything that is wrong with a manifest, by every check.
fn problems(text: &str) -> Vec<String> {
    let all = match parse(text) {
        Ok(all) => all,
        Err(error) => return vec![error],
    };
    let each = |check: fn(&documents::Document) -> Vec<String>| {
        all.iter().flat_map(check).collect::<Vec<_>>()
    };
    [
        each(documents::problems),
        each(pods::problems),
        each(metrics::problems),
        references::problems(&all),
    ]
    .concat()
}

#[test]
fn a_good_manifest_is_let_alone() {
    assert_eq!(problems(GOOD), Vec::<String>::new());
}

#[test]
fn whatever_is_broken_is_found() {
    // What stands in the good manifest, what stands there instead, and what is said of it.
    let broken = [
        // What Kubernetes refuses or drops.
        (
            "readinessProbe:",
            "readinesProbe:",
            "/readinesProbe is not a field",
        ),
        (
            "maxUnavailable: 1,",
            "maxUnavailabel: 1,",
            "/spec/maxUnavailabel is not a field",
        ),
        (
            "podSelector: {},",
            "podselector: {},",
            "podselector is not a field",
        ),
        (
            "runAsUser: 10001",
            "runAsUser: somebody",
            "invalid type: string",
        ),
        (
            "cpu: \"4\", memory: 8Gi }, limits",
            "cpu: 4, memory: 8Gi }, limits",
            "understood as \"4\"",
        ),
        (
            "apiVersion: apps/v1",
            "apiVersion: apps/v1beta1",
            "not a type that is known",
        ),
        (
            "interval: 15s",
            "intervall: 15s",
            "'intervall' was unexpected",
        ),
        (
            "          for: 5m",
            "          four: 5m",
            "'four' was unexpected",
        ),
        (
            "maxReplicaCount: 8",
            "maxReplicas: 8",
            "'maxReplicas' was unexpected",
        ),
        (
            "  scaleTargetRef: { name: trialhead-worker-cpu }\n",
            "",
            "\"scaleTargetRef\" is a required",
        ),
        (
            "kind: ScaledObject\nmetadata: { name:",
            "kind: ScaledObject\nmetadata: { naame: x, name:",
            "naame is not a field",
        ),
        // Confined, bounded, watched.
        (
            "      automountServiceAccountToken: false\n",
            "",
            "automountServiceAccountToken",
        ),
        (
            "enableServiceLinks: false",
            "enableServiceLinks: true",
            "enableServiceLinks",
        ),
        (
            "runAsNonRoot: true",
            "runAsNonRoot: false",
            "may run as root",
        ),
        ("        runAsUser: 10001\n", "", "may run as root"),
        ("type: RuntimeDefault", "type: Unconfined", "seccomp"),
        (
            "serviceAccountName: some-account",
            "hostNetwork: true",
            "shares a namespace of the host",
        ),
        (
            "readOnlyRootFilesystem: true",
            "readOnlyRootFilesystem: false",
            "can write its own image",
        ),
        (
            "allowPrivilegeEscalation: false",
            "allowPrivilegeEscalation: true",
            "may gain privileges",
        ),
        (
            "allowPrivilegeEscalation: false",
            "allowPrivilegeEscalation: false\n            privileged: true",
            "may gain privileges",
        ),
        (
            "drop: [\"ALL\"]",
            "drop: [\"ALL\"], add: [\"SYS_PTRACE\"]",
            "keeps capabilities",
        ),
        (
            "limits: { cpu: \"4\", memory: 8Gi }",
            "limits: { cpu: \"4\" }",
            "no limits of memory",
        ),
        (
            "requests: { cpu: \"4\", memory: 8Gi }",
            "requests: { cpu: \"2\", memory: 8Gi }",
            "requests are not the limits",
        ),
        (
            "cpu: \"4\", memory: 8Gi } }",
            "cpu: 1500m, memory: 8Gi } }",
            "a part of a core",
        ),
        (
            "name: trialhead-worker-cpu, namespace",
            "name: trialhead-worker-gpu, namespace",
            "the one GPU",
        ),
        (
            "TRIALHEAD_POOL__DEVICES, value: cpu",
            "TRIALHEAD_POOL__DEVICES, value: gpu",
            "other devices than its name says",
        ),
        ("trialhead:0.1.0", "trialhead", "whatever image is newest"),
        (
            "          readinessProbe: { httpGet: { path: /readyz, port: http } }\n",
            "",
            "no readinessProbe",
        ),
        (
            "kind: Deployment\nmetadata: { name: trialhead-worker-cpu",
            "kind: Deployment\nmetadata: { name: trialhead-api",
            "no livenessProbe",
        ),
        (
            "          readinessProbe: {",
            "          livenessProbe: { httpGet: { path: /healthz, port: http } }\n          readinessProbe: {",
            "may kill without a word",
        ),
        (
            "value: \"0.0.0.0:8080\"",
            "value: \"0.0.0.0:9090\"",
            "does not listen at a port that it has",
        ),
        (
            "ONCE_EMPTY_EXIT_CODE, value: \"0\"",
            "ONCE_EMPTY_EXIT_CODE, value: \"3\"",
            "fails when another was faster",
        ),
        (
            "path: /readyz, port: http",
            "path: /readyz, port: htpp",
            "a port that it has not",
        ),
        (
            "terminationGracePeriodSeconds: 60",
            "terminationGracePeriodSeconds: 30",
            "killed before it has drained",
        ),
        (
            "      terminationGracePeriodSeconds: 60\n",
            "",
            "leaves the time to end to a default",
        ),
        (
            "emptyDir: { sizeLimit: 1Gi }",
            "emptyDir: {}",
            "fill the node's disk",
        ),
        (
            "emptyDir: { sizeLimit: 1Gi }",
            "hostPath: { path: /dev }",
            "something of the host's",
        ),
        (
            "volumeMounts: [{ name: data,",
            "volumeMounts: [{ name: date,",
            "no volume of the pod",
        ),
        ("$(DATABASE_HOST)", "$(DATABASE_PORT)", "not filled in"),
        (
            "TRIALHEAD_POOL__DRAIN_SECS",
            "TRIALHEAD_POOL__DRIAN_SECS",
            "no setting",
        ),
        // References.
        (
            "serviceAccountName: some-account",
            "serviceAccountName: other",
            "no service account other",
        ),
        ("key: host }", "key: hots }", "Some(\"hots\")"),
        (
            "name: trialhead-database, key",
            "name: trialhead-databse, key",
            "trialhead-databse",
        ),
        (
            "name: trialhead-datasets, optional: true",
            "name: trialhead-datasets",
            "trialhead-datasets",
        ),
        (
            "http://trialhead:8080\"",
            "http://trialhead:80\"",
            "no service is at",
        ),
        (
            "metadata: { labels: { app: api } }",
            "metadata: { labels: { app: apy } }",
            "does not select its own pods",
        ),
        (
            "metadata: { labels: { app: api } }",
            "metadata: { labels: { app: apy } }",
            "spreads pods that are not its own",
        ),
        (
            "maxUnavailable: 1, selector: { matchLabels: { app: api",
            "maxUnavailable: 1, selector: { matchLabels: { app: apy",
            "PodDisruptionBudget budget: selects no pods",
        ),
        (
            "podSelector: { matchLabels: { app: api",
            "podSelector: { matchLabels: { app: apy",
            "NetworkPolicy allow: selects no pods",
        ),
        (
            "values: [api]",
            "values: [apy]",
            "/ingress names pods that are not there",
        ),
        (
            "ports: [{ port: http }]",
            "ports: [{ port: htpp }]",
            "no pod that it selects has a port htpp",
        ),
        (
            "targetPort: http",
            "targetPort: htpp",
            "no pod that it selects has a port htpp",
        ),
        (
            "endpoints: [{ port: web",
            "endpoints: [{ port: wep",
            "no service that it selects has a port",
        ),
        (
            "podMetricsEndpoints: [{ port: http",
            "podMetricsEndpoints: [{ port: htpp",
            "PodMonitor pods: no pod that it selects has a port htpp",
        ),
        (
            "podMetricsEndpoints: [{ port: http, path",
            "podMetricsEndpoints: [{ port: http, paht",
            "'paht' was unexpected",
        ),
        (
            "scaleTargetRef: { name: trialhead-worker-cpu",
            "scaleTargetRef: { name: trialhead-wroker-cpu",
            "no Deployment trialhead-wroker-cpu",
        ),
        (
            "policyTypes: [Ingress, Egress]",
            "policyTypes: [Ingress]",
            "no policy refuses",
        ),
        (
            "name: budget, namespace: trialhead",
            "name: budget, namespace: trialhaed",
            "not the one namespace",
        ),
        // Metrics.
        (
            "(trialhead_queue_depth{",
            "(trialhead_queue_length{",
            "trialhead_queue_length is not a metric",
        ),
        (
            "sum(trialhead_queue_depth)",
            "sum(trialhead_queued)",
            "trialhead_queued is not a metric",
        ),
        (
            " or 0 * max(trialhead_studies)",
            " or vector(0)",
            "takes a lost API for an empty queue",
        ),
        ("{backend!=", "{backnd!=", "backnd is not a metric or label"),
        (
            "max by (backend) (",
            "max by (backend) ((",
            "not a whole query",
        ),
        (
            "            runbook: Something that is long enough\n",
            "",
            "what to do",
        ),
        (
            "labels: { severity: warning }",
            "labels: {}",
            "how bad it is",
        ),
    ];
    let mut missed = Vec::new();
    for (good, bad, said) in broken {
        assert!(GOOD.contains(good), "{good:?} is not in the good manifest");
        let problems = problems(&GOOD.replacen(good, bad, 1));
        if !problems.iter().any(|problem| problem.contains(said)) {
            missed.push(format!(
                "{bad:?} instead of {good:?}: {said:?} is not in {problems:#?}"
            ));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
