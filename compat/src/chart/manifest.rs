//! What the chart rendered, read: workloads, what their pods are made of, and Services.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Problem;

/// Labels of a pod, or of what selects some.
pub(crate) type Labels = BTreeMap<String, String>;

/// All objects of one release, in a Kubernetes cluster of its own.
pub(crate) struct Release {
    /// For people: the name of the values file.
    pub(crate) title: String,
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
pub(crate) struct Template {
    pub(crate) workload: Workload,
    /// Name of the workload, with which the names of its pods begin.
    pub(crate) name: String,
    pub(crate) replicas: u64,
    pub(crate) labels: Labels,
    pub(crate) annotations: Labels,
    pub(crate) spec: Value,
}

/// A name for pods.
pub(crate) struct Service {
    pub(crate) name: String,
    /// Whether clients see the pods themselves.
    pub(crate) headless: bool,
    pub(crate) selector: Labels,
    pub(crate) annotations: Labels,
}

impl Release {
    /// Reads a list of objects as JSON.
    pub(crate) fn load(path: &Path) -> Result<Release, Problem> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| failed(&error))?;
        let objects = serde_json::from_str(&text).map_err(|error| failed(&error))?;
        let title = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Release { title, objects })
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
        let made = &object["spec"]["template"];
        Template {
            workload,
            replicas: object["spec"]["replicas"].as_u64().unwrap_or(least),
            labels: labels(&made["metadata"]["labels"]),
            annotations: labels(&made["metadata"]["annotations"]),
            spec: made["spec"].clone(),
            name,
        }
    }

    /// The pods of `helm test`.
    pub(crate) fn tests(&self) -> Vec<Template> {
        let tests =
            self.of_kind("Pod").filter(|pod| pod["metadata"]["annotations"]["helm.sh/hook"] == "test");
        let made = tests.map(|pod| Template {
            workload: Workload::Once,
            name: text(&pod["metadata"]["name"]),
            replicas: 1,
            labels: labels(&pod["metadata"]["labels"]),
            annotations: labels(&pod["metadata"]["annotations"]),
            spec: pod["spec"].clone(),
        });
        made.collect()
    }

    pub(crate) fn services(&self) -> Vec<Service> {
        let made = self.of_kind("Service").map(|service| {
            let spec = &service["spec"];
            Service {
                name: text(&service["metadata"]["name"]),
                headless: spec["clusterIP"] == "None",
                selector: labels(&spec["selector"]),
                annotations: labels(&service["metadata"]["annotations"]),
            }
        });
        made.collect()
    }

    pub(crate) fn namespace(&self) -> String {
        let first = self.of_kind("ConfigMap").next();
        first.map(|map| text(&map["metadata"]["namespace"])).unwrap_or_default()
    }
}

impl Template {
    pub(crate) fn init_containers(&self) -> &[Value] {
        items(&self.spec["initContainers"])
    }

    /// The one that the pod is there for.
    pub(crate) fn container(&self) -> &Value {
        &self.spec["containers"][0]
    }

    /// The number of a port that a probe or an annotation names.
    pub(crate) fn port(&self, name: &str) -> Option<u16> {
        let ports = items(&self.container()["ports"]);
        ports.iter().find(|port| port["name"] == name).map(|port| number(&port["containerPort"]))
    }
}

impl Service {
    pub(crate) fn selects(&self, labels: &Labels) -> bool {
        self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// The items of a list; none if there is no list.
pub(crate) fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u16 {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).unwrap_or(0)
}

fn labels(map: &Value) -> Labels {
    map.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
}
