//! `cargo xtask helm`: the chart in helm/gaios, judged by the programs that will read it.
//!
//! Every values file is rendered by the real `helm`; what comes out is decoded strictly by the types of Kubernetes
//! (helm/check), compared with the golden renders, and its configuration is given to `gaios check`.

mod image;
mod schema;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};

use config::{Config, Given};
use serde_json::Value;

use crate::run::{Failure, Steps, build_programs, program};
use tools::Tools;

pub(crate) use schema::write as write_schema;

const CHART: &str = "helm/gaios";
/// What is rendered here goes there.
const RENDERS: &str = "target/helm";
/// The release that values files are rendered as, and its namespace.
const RELEASE: &str = "gaios";
/// The Kubernetes whose types helm/check decodes by.
const KUBE_VERSION: &str = "1.37.0";
/// Where certificates are in the pods.
const CERTIFICATES: &str = "/etc/gaios/tls";
const GAIOS: &str = "target/debug/gaios";
const COMPAT: &str = "target/debug/compat";

/// What to do with files that are generated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generated {
    Check,
    Write,
}

pub(crate) fn run(generated: Generated) -> Result<(), Failure> {
    let tools = tools::install()?;
    build_programs()?;
    let mut steps = Steps::new("helm");
    steps.step("generated", || readme_and_schema(&tools, generated));
    steps.step("lint", || lint(&tools));
    steps.step("refused", || refused(&tools));
    steps.step("render", || render_all(&tools, generated));
    steps.step("image", image::check);
    steps.step("processes", processes);
    steps.finish()
}

fn readme_and_schema(tools: &Tools, generated: Generated) -> Result<(), Failure> {
    let check = match generated {
        Generated::Check => {
            schema::check()?;
            &["--check"][..]
        }
        Generated::Write => {
            schema::write()?;
            &[]
        }
    };
    tools.check("readme").args(check).args(&[CHART]).run()
}

fn lint(tools: &Tools) -> Result<(), Failure> {
    for values in values_files()? {
        tools.helm("lint").args(&["--strict", "--quiet", CHART]).args(&values_flags(&values)).run()?;
    }
    Ok(())
}

/// Values that must not pass: each file begins with `# ` and the words that the refusal must hold.
fn refused(tools: &Tools) -> Result<(), Failure> {
    for values in yaml_files(&Path::new(CHART).join("tests/refused"))? {
        let text = read(&values)?;
        let words = text.lines().next().and_then(|line| line.strip_prefix("# "));
        let words = words.ok_or_else(|| Failure::new(format!("{}: without words", values.display())))?;
        match render(tools, &values, &[]) {
            Ok(_) => return Err(Failure::new(format!("{}: was not refused", values.display()))),
            Err(failure) if failure.to_string().contains(words) => {}
            Err(failure) => {
                let message = format!("{}: refused without saying `{words}`: {failure}", values.display());
                return Err(Failure::new(message));
            }
        }
    }
    Ok(())
}

fn render_all(tools: &Tools, generated: Generated) -> Result<(), Failure> {
    fs::create_dir_all(RENDERS).map_err(|error| Failure::new(format!("{RENDERS}: {error}")))?;
    let mut failed = Vec::new();
    for values in values_files()? {
        if let Err(failure) = render_one(tools, &values, generated) {
            eprintln!("{}: {failure}", values.display());
            failed.push(stem(&values));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::new(failed.join(", "))) }
}

fn render_one(tools: &Tools, values: &Path, generated: Generated) -> Result<(), Failure> {
    let name = stem(values);
    let rendered = Path::new(RENDERS).join(format!("{name}.yaml"));
    write(&rendered, &render(tools, values, &[])?)?;
    let decoded = tools.check("decode").args(&[&rendered.display().to_string()]).output()?;
    write(&Path::new(RENDERS).join(format!("{name}.json")), &decoded)?;
    let notes = tools.check("notes").args(&[CHART, RELEASE, KUBE_VERSION]).args(&[values]).output()?;
    write(&Path::new(RENDERS).join(format!("{name}.notes.txt")), &notes)?;
    let objects: Value =
        serde_json::from_str(&decoded).map_err(|error| Failure::new(format!("{name}: {error}")))?;
    check_configuration(&name, &objects)?;

    // The dashboards and the rules are files of the chart themselves, and would be there twice.
    let without = ["--set", "metrics.dashboards.enabled=false", "--set", "metrics.rules.enabled=false"];
    let shown = render(tools, values, &without)?;
    let golden = Path::new(CHART).join(format!("tests/golden/{name}.yaml"));
    match generated {
        Generated::Write => write(&golden, &shown),
        Generated::Check if fs::read_to_string(&golden).is_ok_and(|golden| golden == shown) => Ok(()),
        Generated::Check => {
            write(&Path::new(RENDERS).join(format!("{name}.golden.yaml")), &shown)?;
            let message = format!(
                "differs from {}, compare with {RENDERS}/{name}.golden.yaml; `cargo xtask helm --write` takes it over",
                golden.display()
            );
            Err(Failure::new(message))
        }
    }
}

/// Files of values whose renders are the releases of one cluster.
const CLUSTERS: &[&[&str]] = &[
    &["three-regions-eu", "three-regions-us", "three-regions-ap", "gateways-only"],
    &["one-region"],
    &["cert-manager"],
];

/// Starts the pods of the renders as processes, replaces them under load, and looks at what they serve.
fn processes() -> Result<(), Failure> {
    for cluster in CLUSTERS {
        let renders: Vec<String> = cluster.iter().map(|name| format!("{RENDERS}/{name}.json")).collect();
        program(COMPAT).args(&["chart", "--gaios", GAIOS]).args(&renders).run()?;
    }
    Ok(())
}

/// Every rendered configuration must pass as each of the pods that will read it, with certificates as they will be there.
fn check_configuration(name: &str, objects: &Value) -> Result<(), Failure> {
    let configurations = configurations(objects);
    if configurations.is_empty() {
        return Err(Failure::new("no configuration was rendered"));
    }
    let folder = Path::new(RENDERS).join(format!("{name}.tls"));
    make_certificates(&folder, &configurations)?;
    for Configuration { file, text, pods } in &configurations {
        let path = Path::new(RENDERS).join(format!("{name}.{file}"));
        write(&path, &text.replace(CERTIFICATES, &folder.display().to_string()))?;
        for pod in pods {
            let check = program(GAIOS).args(&["check", "--config", &path.display().to_string()]);
            let check = check.env("GAIOS_NAME", pod).env("GAIOS_ZONE", "a");
            let check = if file == "replica.yaml" { check.env("GAIOS_NODE", ordinal(pod)) } else { check };
            check.output()?;
        }
    }
    Ok(())
}

/// A configuration, and the pods that will read it.
struct Configuration {
    file: String,
    text: String,
    pods: Vec<String>,
}

fn configurations(objects: &Value) -> Vec<Configuration> {
    let objects = objects.as_array().map(Vec::as_slice).unwrap_or_default();
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let mut found = Vec::new();
    for map in of_kind("ConfigMap") {
        for (file, text) in map["data"].as_object().into_iter().flatten() {
            let pods: Vec<String> = match file.as_str() {
                "replica.yaml" => of_kind("StatefulSet").flat_map(ordinals).collect(),
                "gateway.yaml" => vec!["gaios-gateway-0".to_owned()],
                _ => continue,
            };
            let text = text.as_str().unwrap_or_default().to_owned();
            found.push(Configuration { file: file.clone(), text, pods });
        }
    }
    found
}

/// Those that the configurations name, if they name some, as `gaios ctl certs` makes them.
fn make_certificates(folder: &Path, configurations: &[Configuration]) -> Result<(), Failure> {
    let (mut cluster, mut nodes, mut gateways, mut hosts) =
        (String::new(), Vec::new(), Vec::new(), Vec::new());
    for Configuration { file, text, pods } in configurations {
        for pod in pods {
            let node = (file == "replica.yaml").then(|| ordinal(pod).to_owned());
            let given = Given { node, name: Some(pod.clone()), ..Given::default() };
            let parsed = Config::parse_with(file, text, &given);
            match parsed.map_err(|problems| Failure::new(problems.to_string()))? {
                Config::Replica(replica) => {
                    cluster = replica.cluster.name.to_string();
                    nodes.extend(replica.link_tls.map(|_| replica.node.to_string()));
                }
                Config::Gateway(gateway) => {
                    cluster = gateway.cluster.name.to_string();
                    let shown = gateway.link_tls.map(|tls| stem(&tls.cert_file));
                    gateways.extend(shown.map(|file| file.trim_start_matches("gateway-").to_owned()));
                    let urls = gateway.advertise_client_urls.iter();
                    hosts.extend(urls.map(|url| url.address().host().to_owned()));
                }
            }
        }
    }
    if nodes.is_empty() && gateways.is_empty() {
        return Ok(());
    }
    let mut make = program(GAIOS).args(&["ctl", "certs", "--dir", &folder.display().to_string(), "make"]);
    make = make.args(&["--cluster", &cluster]);
    for (flag, values) in [("--nodes", nodes), ("--gateways", gateways), ("--names", hosts)] {
        if !values.is_empty() {
            make = make.args(&[flag, &values.join(",")]);
        }
    }
    make.output().map(drop)
}

/// The number at the end of a pod's name.
fn ordinal(pod: &str) -> &str {
    pod.rsplit('-').next().unwrap_or_default()
}

/// The names of a StatefulSet's pods.
fn ordinals(set: &Value) -> Vec<String> {
    let start = set["spec"]["ordinals"]["start"].as_u64().unwrap_or(0);
    let count = set["spec"]["replicas"].as_u64().unwrap_or(1);
    let name = set["metadata"]["name"].as_str().unwrap_or_default();
    (start..start + count).map(|ordinal| format!("{name}-{ordinal}")).collect()
}

fn render(tools: &Tools, values: &Path, more: &[&str]) -> Result<String, Failure> {
    let named = ["--namespace", RELEASE, RELEASE, CHART];
    tools.helm("template").args(&named).args(&values_flags(values)).args(more).output()
}

fn values_flags(values: &Path) -> [String; 4] {
    [
        "--kube-version".to_owned(),
        KUBE_VERSION.to_owned(),
        "--values".to_owned(),
        values.display().to_string(),
    ]
}

/// Those for people, and those that render what no other does.
fn values_files() -> Result<Vec<PathBuf>, Failure> {
    let chart = Path::new(CHART);
    Ok([yaml_files(&chart.join("values"))?, yaml_files(&chart.join("tests/values"))?].concat())
}

fn yaml_files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error| Failure::new(format!("{}: {error}", folder.display()));
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Failure::new(format!("{}: holds no values", folder.display())));
    }
    Ok(files)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}
