//! What the chart rendered, read: workloads, what their pods are made of, Services, certificates that are asked for, and who may
//! do what.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use test_kubernetes::Rule;

use crate::Problem;

/// Labels of a pod, or of what selects some.
pub(crate) type Labels = BTreeMap<String, String>;

/// All objects of one release, in a Kubernetes cluster of its own.
pub(crate) struct Release {
    /// For people: the name of the values file.
    pub(crate) title: String,
    /// What people are told after the install.
    pub(crate) notes: String,
    objects: Vec<Value>,
}

/// Who makes pods, and in which order it replaces them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    /// Numbered from `start`; the highest is replaced first, each after the one before is ready.
    StatefulSet { start: u64 },
    /// A new one first, then an old one goes.
    Deployment,
    /// Runs to its end.
    Once,
}

/// What pods are made of.
#[derive(Clone)]
pub(crate) struct Template {
    pub(crate) workload: Workload,
    /// Name of the workload, with which the names of its pods begin.
    pub(crate) name: String,
    pub(crate) replicas: u64,
    pub(crate) labels: Labels,
    pub(crate) annotations: Labels,
    pub(crate) spec: Value,
    /// The Service that names each pod by itself.
    pub(crate) service: Option<String>,
}

/// How a Service leads to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By its name, to the pods themselves: to those that are ready, or to all.
    Headless { all: bool },
    /// By an address of its own.
    ClusterIp,
    /// By one that the world outside can reach, too.
    LoadBalancer,
}

/// A name for pods.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) labels: Labels,
    pub(crate) selector: Labels,
    pub(crate) annotations: Labels,
    pub(crate) ports: Vec<Port>,
}

/// A port of a Service.
#[derive(Clone)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) number: u16,
    /// The name of the pods' port behind it.
    pub(crate) target: String,
}

/// What somebody is asked to sign.
pub(crate) struct Certificate {
    pub(crate) name: String,
    /// Where it is to be kept.
    pub(crate) secret: String,
    pub(crate) issuer: String,
    pub(crate) duration_hours: u64,
    pub(crate) common_name: String,
    pub(crate) uris: Vec<String>,
    pub(crate) dns_names: Vec<String>,
    pub(crate) usages: Vec<String>,
}

/// Where metrics are to be read.
pub(crate) enum Monitor {
    /// At the pods of all Services with these labels, by the Services' port.
    Services { labels: Labels, port: String, path: String },
    /// At all pods with these labels, by their own port.
    Pods { labels: Labels, port: String, path: String },
}

impl Release {
    /// Reads a list of objects as JSON, and the notes beside it.
    pub(crate) fn load(path: &Path) -> Result<Release, Problem> {
        let failed = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| failed(path, &error))?;
        let objects = serde_json::from_str(&text).map_err(|error| failed(path, &error))?;
        let beside = path.with_extension("notes.txt");
        let notes = fs::read_to_string(&beside).map_err(|error| failed(&beside, &error))?;
        let title = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Release { title, notes, objects })
    }

    pub(crate) fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }

    /// The data of a ConfigMap.
    pub(crate) fn config_map(&self, name: &str) -> Result<Labels, Problem> {
        let found = self.of_kind("ConfigMap").find(|map| map["metadata"]["name"] == name);
        found.map(|map| labels(&map["data"])).ok_or_else(|| format!("{}: no ConfigMap {name}", self.title))
    }

    /// Nodes first: gateways wait for them, and not the other way.
    pub(crate) fn workloads(&self) -> Vec<Template> {
        let sets = self.of_kind("StatefulSet").map(|set| {
            let start = set["spec"]["ordinals"]["start"].as_u64().unwrap_or(0);
            self.template(set, Workload::StatefulSet { start })
        });
        let deployments = self.of_kind("Deployment").map(|set| self.template(set, Workload::Deployment));
        sets.chain(deployments).collect()
    }

    fn template(&self, object: &Value, workload: Workload) -> Template {
        let name = text(&object["metadata"]["name"]);
        // Without a number of its own, an autoscaler decides, and begins with the least.
        let scaler = self
            .of_kind("HorizontalPodAutoscaler")
            .find(|scaler| scaler["spec"]["scaleTargetRef"]["name"] == name.as_str());
        let least = scaler.and_then(|scaler| scaler["spec"]["minReplicas"].as_u64()).unwrap_or(1);
        Template {
            replicas: object["spec"]["replicas"].as_u64().unwrap_or(least),
            service: object["spec"]["serviceName"].as_str().map(str::to_owned),
            ..made(name, workload, &object["spec"]["template"])
        }
    }

    /// The pods of `helm test`.
    pub(crate) fn tests(&self) -> Vec<Template> {
        let tests =
            self.of_kind("Pod").filter(|pod| pod["metadata"]["annotations"]["helm.sh/hook"] == "test");
        tests.map(|pod| made(text(&pod["metadata"]["name"]), Workload::Once, pod)).collect()
    }

    /// The pods that an install or an upgrade begins with.
    pub(crate) fn hooks(&self) -> Vec<Template> {
        let hook = |job: &&Value| {
            let when = text(&job["metadata"]["annotations"]["helm.sh/hook"]);
            when.split(',').any(|when| when == "pre-install")
                && when.split(',').any(|when| when == "pre-upgrade")
        };
        let hooks = self.of_kind("Job").filter(hook);
        hooks
            .map(|job| made(text(&job["metadata"]["name"]), Workload::Once, &job["spec"]["template"]))
            .collect()
    }

    /// The pods that run from time to time.
    pub(crate) fn scheduled(&self) -> Vec<Template> {
        let jobs = self.of_kind("CronJob");
        let made = jobs.map(|job| {
            let template = &job["spec"]["jobTemplate"]["spec"]["template"];
            made(text(&job["metadata"]["name"]), Workload::Once, template)
        });
        made.collect()
    }

    /// What a service account may do with Secrets.
    pub(crate) fn rules(&self, account: &str) -> Vec<Rule> {
        let bound = self.of_kind("RoleBinding").filter(|binding| {
            items(&binding["subjects"])
                .iter()
                .any(|subject| subject["kind"] == "ServiceAccount" && subject["name"] == account)
        });
        let roles = bound.flat_map(|binding| {
            let role = &binding["roleRef"]["name"];
            self.of_kind("Role").filter(move |known| known["metadata"]["name"] == *role)
        });
        let rules = roles.flat_map(|role| items(&role["rules"]));
        let secrets = rules.filter(|rule| items(&rule["resources"]).iter().any(|what| what == "secrets"));
        secrets
            .map(|rule| Rule { verbs: texts(&rule["verbs"]), names: texts(&rule["resourceNames"]) })
            .collect()
    }

    /// What cert-manager is asked for.
    pub(crate) fn certificates(&self) -> Vec<Certificate> {
        let made = self.of_kind("Certificate").map(|object| {
            let spec = &object["spec"];
            let duration = text(&spec["duration"]);
            let hours = duration.split_once('h').and_then(|(hours, _)| hours.parse().ok());
            Certificate {
                name: text(&object["metadata"]["name"]),
                secret: text(&spec["secretName"]),
                issuer: text(&spec["issuerRef"]["name"]),
                duration_hours: hours.unwrap_or_default(),
                common_name: text(&spec["commonName"]),
                uris: texts(&spec["uris"]),
                dns_names: texts(&spec["dnsNames"]),
                usages: texts(&spec["usages"]),
            }
        });
        made.collect()
    }

    pub(crate) fn services(&self) -> Vec<Service> {
        let made = self.of_kind("Service").map(|service| {
            let spec = &service["spec"];
            let ports = items(&spec["ports"]).iter().map(|port| Port {
                name: text(&port["name"]),
                number: number(&port["port"]),
                target: text(&port["targetPort"]),
            });
            Service {
                name: text(&service["metadata"]["name"]),
                kind: if spec["clusterIP"] == "None" {
                    Kind::Headless { all: spec["publishNotReadyAddresses"] == true }
                } else if spec["type"] == "LoadBalancer" {
                    Kind::LoadBalancer
                } else {
                    Kind::ClusterIp
                },
                labels: labels(&service["metadata"]["labels"]),
                selector: labels(&spec["selector"]),
                annotations: labels(&service["metadata"]["annotations"]),
                ports: ports.collect(),
            }
        });
        made.collect()
    }

    /// What the Prometheus operator is told.
    pub(crate) fn monitors(&self) -> Vec<Monitor> {
        let mut monitors = Vec::new();
        for monitor in self.of_kind("ServiceMonitor") {
            let labels = labels(&monitor["spec"]["selector"]["matchLabels"]);
            for endpoint in items(&monitor["spec"]["endpoints"]) {
                let (port, path) = (text(&endpoint["port"]), text(&endpoint["path"]));
                monitors.push(Monitor::Services { labels: labels.clone(), port, path });
            }
        }
        for monitor in self.of_kind("PodMonitor") {
            let labels = labels(&monitor["spec"]["selector"]["matchLabels"]);
            for endpoint in items(&monitor["spec"]["podMetricsEndpoints"]) {
                let (port, path) = (text(&endpoint["port"]), text(&endpoint["path"]));
                monitors.push(Monitor::Pods { labels: labels.clone(), port, path });
            }
        }
        monitors
    }

    pub(crate) fn namespace(&self) -> String {
        let first = self.of_kind("ConfigMap").next();
        first.map(|map| text(&map["metadata"]["namespace"])).unwrap_or_default()
    }
}

/// From whatever has the metadata and the specification of a pod.
fn made(name: String, workload: Workload, pod: &Value) -> Template {
    Template {
        workload,
        name,
        replicas: 1,
        labels: labels(&pod["metadata"]["labels"]),
        annotations: labels(&pod["metadata"]["annotations"]),
        spec: pod["spec"].clone(),
        service: None,
    }
}

impl Template {
    pub(crate) fn init_containers(&self) -> &[Value] {
        items(&self.spec["initContainers"])
    }

    pub(crate) fn containers(&self) -> &[Value] {
        items(&self.spec["containers"])
    }

    /// The one that the pod is there for, where there is one.
    pub(crate) fn container(&self) -> &Value {
        &self.spec["containers"][0]
    }

    /// The same pod, with its first container alone, which is told something else after its flags.
    pub(crate) fn told(&self, words: &[&str]) -> Template {
        let mut spec = self.spec.clone();
        let mut container = self.container().clone();
        let flags = items(&container["args"]).iter().filter(|arg| text(arg).starts_with("--")).cloned();
        let words = words.iter().copied().map(Value::from);
        container["args"] = flags.chain(words).collect();
        spec["initContainers"] = Value::Array(Vec::new());
        spec["containers"] = Value::Array(vec![container]);
        Template { spec, ..self.clone() }
    }

    /// Whether its pods have a volume of this name.
    pub(crate) fn has_volume(&self, name: &str) -> bool {
        items(&self.spec["volumes"]).iter().any(|volume| volume["name"] == name)
    }

    /// The number of a port that a probe, a Service or a monitor names.
    pub(crate) fn port(&self, name: &str) -> Option<u16> {
        let ports = items(&self.container()["ports"]);
        ports.iter().find(|port| port["name"] == name).map(|port| number(&port["containerPort"]))
    }

    /// What an argument of the form `--name=value` says.
    pub(crate) fn argument(&self, name: &str) -> Option<&str> {
        let args = items(&self.container()["args"]).iter().filter_map(Value::as_str);
        args.filter_map(|arg| arg.strip_prefix(name)?.strip_prefix('=')).next()
    }
}

impl Service {
    pub(crate) fn selects(&self, labels: &Labels) -> bool {
        has(labels, &self.selector)
    }
}

/// Whether these labels are among those.
pub(crate) fn has(all: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| all.get(key) == Some(value))
}

/// The items of a list; none if there is no list.
pub(crate) fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(list: &Value) -> Vec<String> {
    items(list).iter().map(text).collect()
}

fn number(value: &Value) -> u16 {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).unwrap_or(0)
}

fn labels(map: &Value) -> Labels {
    map.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
}
