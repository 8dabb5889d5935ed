//! What changes while a process runs: on SIGHUP, and when its configuration file is another. What may change then is taken
//! up, everything else is refused by name, and of a file with mistakes nothing is taken up at all.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use config::{Gateway, Given, LoadError, Replica};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use super::Failure;

/// How often the file is looked at. What writes configurations for others, as Kubernetes does, takes a minute itself.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A configuration that may change while the process runs.
pub(crate) trait Reloadable: Sized {
    /// The fields that may change, or sections of them.
    const FIELDS: &'static [&'static str];

    fn load(source: &Source) -> Result<Self, LoadError>;

    /// The names of the fields in which the two differ.
    fn changed_from(&self, other: &Self) -> Vec<String>;
}

impl Reloadable for Gateway {
    const FIELDS: &'static [&'static str] = &[
        "drain_grace_period",
        "limits.max_requests_in_flight",
        "limits.max_txn_ops",
        "limits.request_timeout",
        "log.level",
    ];

    fn load(source: &Source) -> Result<Self, LoadError> {
        Gateway::load_with(&source.file, &source.given)
    }

    fn changed_from(&self, other: &Self) -> Vec<String> {
        self.changed_from(other)
    }
}

impl Reloadable for Replica {
    const FIELDS: &'static [&'static str] = &["log.level"];

    fn load(source: &Source) -> Result<Self, LoadError> {
        Replica::load_with(&source.file, &source.given)
    }

    fn changed_from(&self, other: &Self) -> Vec<String> {
        self.changed_from(other)
    }
}

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) file: PathBuf,
    pub(crate) given: Given,
}

impl Source {
    /// Changes when the file does; `None` while it cannot be read. Follows links, by which Kubernetes replaces files.
    fn stamp(&self) -> Option<(SystemTime, u64)> {
        let metadata = fs::metadata(&self.file).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }
}

/// What the running process has of its configuration.
struct Running<C> {
    /// The process was started with this: the fields that may not change are as here.
    started: C,
    /// The fields that may change are as here.
    taken: C,
}

/// What became of a new configuration.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    taken: Vec<String>,
    refused: Vec<String>,
}

impl<C: Reloadable> Running<C> {
    fn judge(&self, new: &C) -> Verdict {
        let may_change = |field: &String| {
            let within = |allowed: &&str| {
                field.strip_prefix(*allowed).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            C::FIELDS.iter().any(within)
        };
        let taken = new.changed_from(&self.taken).into_iter().filter(may_change).collect();
        let refused =
            new.changed_from(&self.started).into_iter().filter(|field| !may_change(field)).collect();
        Verdict { taken, refused }
    }
}

/// Follows the file until the process stops. `apply` takes up what may change of a configuration; it is also called when
/// nothing did, since files that it names may have.
pub(crate) async fn follow<C: Reloadable + Clone>(
    source: Source,
    started: C,
    mut apply: impl FnMut(&C),
) -> Result<(), Failure> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut running = Running { taken: started.clone(), started };
    let mut seen = source.stamp();
    loop {
        let asked = tokio::select! {
            heard = hangup.recv() => heard.is_some(),
            () = tokio::time::sleep(LOOK_EVERY) => false,
        };
        let stamp = source.stamp();
        if !asked && (stamp == seen || stamp.is_none()) {
            continue;
        }
        seen = stamp;
        let new = match C::load(&source) {
            Ok(new) => new,
            Err(error) => {
                error!("the configuration is not taken up, the process goes on as it was: {error}");
                continue;
            }
        };
        let Verdict { taken, refused } = running.judge(&new);
        for field in refused {
            warn!("`{field}` cannot change while running: restart");
        }
        apply(&new);
        info!(changed = taken.join(", "), "reloaded the configuration");
        running.taken = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(fields: &str) -> Gateway {
        let text = format!(
            "role: gateway\nname: a\nadvertise_client_urls: [\"http://a:1\"]\n{fields}\n\
             cluster: {{name: c, nodes: [{{id: 1, address: \"n:1\"}}]}}\n"
        );
        Gateway::parse("a.yaml", &text).unwrap()
    }

    #[test]
    fn what_may_change_is_told_apart_by_name() {
        let started = gateway("listen: 127.0.0.1:1");
        let mut running = Running { taken: started.clone(), started };
        let judge = |running: &Running<Gateway>, fields: &str| {
            let Verdict { taken, refused } = running.judge(&gateway(fields));
            (taken.join(" "), refused.join(" "))
        };
        let new =
            "listen: 127.0.0.1:2\nlog: {level: debug}\nlimits: {max_txn_ops: 7, max_request_bytes: 1MiB}";
        let told = judge(&running, new);
        assert_eq!(
            (told.0.as_str(), told.1.as_str()),
            ("limits.max_txn_ops log.level", "listen limits.max_request_bytes")
        );
        // The rest is refused again, and the one that was taken is no news.
        running.taken = gateway(new);
        let told = judge(&running, new);
        assert_eq!((told.0.as_str(), told.1.as_str()), ("", "listen limits.max_request_bytes"));
        let told = judge(&running, "listen: 127.0.0.1:1");
        assert_eq!((told.0.as_str(), told.1.as_str()), ("limits.max_txn_ops log.level", ""));
    }
}
