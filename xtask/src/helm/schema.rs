//! The parts of values.schema.json that come from the tables in config/: what may stand under `nodes.config`,
//! `gateways.config`, `cluster.otherNodes`, `cluster.seeds` and `cluster.groups`.

use std::path::Path;

use config::{Role, json_schema};
use serde_json::Value;

use super::{read, write as write_file};
use crate::run::Failure;

const SCHEMA: &str = "helm/gaios/values.schema.json";

/// Fields that the templates write, and that nobody else may.
const OF_THE_CHART: &[&str] = &[
    "role",
    "node",
    "name",
    "region",
    "zone",
    "data_dir",
    "listen",
    "admin_listen",
    "advertise_client_urls",
    "members",
    "cluster",
    "client_tls",
    "link_tls",
    "insecure",
];

pub(crate) fn write() -> Result<(), Failure> {
    write_file(Path::new(SCHEMA), &wanted(&read(Path::new(SCHEMA))?)?)
}

pub(crate) fn check() -> Result<(), Failure> {
    let found = read(Path::new(SCHEMA))?;
    if found == wanted(&found)? {
        return Ok(());
    }
    Err(Failure::new(format!("{SCHEMA} is out of date: run `cargo xtask docs`")))
}

/// The file with the parts that are generated.
fn wanted(found: &str) -> Result<String, Failure> {
    let failed = |error: serde_json::Error| Failure::new(format!("{SCHEMA}: {error}"));
    let mut schema: Value = serde_json::from_str(found).map_err(failed)?;
    let parse = |text: &str| serde_json::from_str::<Value>(text).map_err(failed);
    let cluster = parse(&json_schema(Role::Replica, &[]))?["properties"]["cluster"]["properties"].take();
    schema["$defs"] = serde_json::json!({
        "replica": parse(&json_schema(Role::Replica, OF_THE_CHART))?,
        "gateway": parse(&json_schema(Role::Gateway, OF_THE_CHART))?,
        "nodes": cluster["nodes"],
        "groups": cluster["groups"],
        "seeds": cluster["seeds"],
    });
    let text = serde_json::to_string_pretty(&schema).map_err(failed)?;
    Ok(text + "\n")
}
