//! A Prometheus of our own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cluster::Targets;
use super::process::{Ended, free_address, get};
use super::write;
use crate::run::Failure;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// Ended when it is dropped.
pub(super) struct Prometheus {
    address: SocketAddr,
    _process: Ended,
}

/// What a query gave.
#[derive(PartialEq, Eq)]
pub(super) enum Answer {
    Data,
    Empty,
}

impl Prometheus {
    /// Scrapes `targets`, and has the alerts of `rules`.
    pub(super) fn start(dir: &Path, targets: &Targets, rules: &Path) -> Result<Prometheus, Failure> {
        let rules = std::path::absolute(rules).map_err(|error| Failure::new(format!("a path: {error}")))?;
        let list = |addresses: &[SocketAddr]| {
            addresses.iter().map(|address| format!("'{address}'")).collect::<Vec<_>>().join(", ")
        };
        let config = dir.join("prometheus.yaml");
        write(
            &config,
            &format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 5s}}\n\
                 rule_files: ['{}']\n\
                 scrape_configs:\n\
                 - {{job_name: gaios-gateway, static_configs: [{{targets: [{}]}}]}}\n\
                 - {{job_name: gaios-replica, static_configs: [{{targets: [{}]}}]}}\n",
                rules.display(),
                list(&targets.gateways),
                list(&targets.replicas),
            ),
        )?;
        let address = free_address()?;
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(["--log.level=warn"])
            .stdout(Stdio::null());
        let prometheus = Prometheus { address, _process: Ended::start(command, "prometheus")? };
        let begun = Instant::now();
        while prometheus.get("/-/ready").is_none_or(|(status, _)| status != 200) {
            if begun.elapsed() > READY_WITHIN {
                return Err(Failure::new("prometheus is not ready"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(prometheus)
    }

    /// Whether a query has data. Not a number is none: nothing was divided by nothing.
    pub(super) fn query(&self, query: &str) -> Result<Answer, Failure> {
        let answer = self.ask(&format!("/api/v1/query?query={}", percent_encoded(query)))?;
        let result = answer["result"].as_array().map(Vec::as_slice).unwrap_or_default();
        let has_number = |sample: &Value| sample["value"][1].as_str().is_some_and(|value| value != "NaN");
        Ok(if result.iter().any(has_number) { Answer::Data } else { Answer::Empty })
    }

    /// Names and expressions of the alerts that are loaded.
    pub(super) fn alerts(&self) -> Result<Vec<(String, String)>, Failure> {
        let answer = self.ask("/api/v1/rules?type=alert")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let groups = answer["groups"].as_array().cloned().unwrap_or_default();
        let rules = groups.iter().filter_map(|group| group["rules"].as_array()).flatten();
        let alerts: Vec<_> = rules.map(|rule| (text(&rule["name"]), text(&rule["query"]))).collect();
        if alerts.is_empty() {
            return Err(Failure::new("prometheus has loaded no alert"));
        }
        Ok(alerts)
    }

    fn ask(&self, path: &str) -> Result<Value, Failure> {
        let (_, body) =
            self.get(path).ok_or_else(|| Failure::new(format!("prometheus: no answer to {path}")))?;
        let answer: Value = serde_json::from_str(&body)
            .map_err(|error| Failure::new(format!("prometheus: {path}: {error}: {body}")))?;
        if answer["status"] != "success" {
            return Err(Failure::new(format!("prometheus: {path}: {}", answer["error"])));
        }
        Ok(answer["data"].clone())
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        get(self.address, path)
    }
}

fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
