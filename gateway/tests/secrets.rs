//! `gaios ctl certs make --secret`: certificates in Secrets, by a real API server on loopback, as far as it has Secrets.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use test_kubernetes::{Api, Files, Rule};
use tls::make::{Authority, Validity};
use tls::{Certificate, KeyRing};

/// The Secret of all that pods need, and that of the CA.
const SECRET: &str = "pier-tls";
const AUTHORITY: &str = "pier-ca";

/// What the role of the chart allows.
fn rules() -> Vec<Rule> {
    let verbs = |verbs: &[&str]| verbs.iter().map(ToString::to_string).collect();
    vec![
        Rule { verbs: verbs(&["get", "update"]), names: vec![SECRET.to_owned(), AUTHORITY.to_owned()] },
        Rule { verbs: verbs(&["create"]), names: Vec::new() },
    ]
}

/// A pod that runs the command, and the API around it.
struct Pod {
    api: Api,
    root: TempDir,
}

impl Pod {
    async fn new() -> Pod {
        let root = tempfile::tempdir().unwrap();
        let api = Api::start("127.0.0.1:0".parse().unwrap(), root.path()).await.unwrap();
        api.allow("let-me-in", rules());
        for (file, text) in [("token", "let-me-in"), ("namespace", "harbour"), ("ca.crt", api.authority())] {
            std::fs::write(root.path().join(file), text).unwrap();
        }
        Pod { api, root }
    }

    fn account(&self) -> &Path {
        self.root.path()
    }

    /// Each time in a folder of its own.
    async fn run(&self, more: &[&str]) -> Output {
        let work = tempfile::tempdir_in(self.root.path()).unwrap();
        self.run_in(work.path().join("tls"), more).await
    }

    async fn run_in(&self, folder: PathBuf, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gaios"));
        command.args(["ctl", "certs", "--dir"]).arg(folder);
        command.args(["make", "--cluster", "harbour", "--secret", SECRET, "--authority-secret", AUTHORITY]);
        command.arg("--service-account").arg(self.account()).args(more);
        command.env("KUBERNETES_SERVICE_HOST", self.api.address().ip().to_string());
        command.env("KUBERNETES_SERVICE_PORT", self.api.address().port().to_string());
        // The server runs on this test's own runtime.
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn make(&self, more: &[&str]) {
        let output = self.run(more).await;
        assert!(output.status.success(), "{}", said(&output));
    }

    fn files(&self, secret: &str) -> Files {
        self.api.secret(secret).unwrap_or_default()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(files: &Files, name: &str) -> String {
    String::from_utf8(files[name].clone()).unwrap()
}

const TWO_NODES: [&str; 6] = ["--nodes", "1,2", "--gateways", "eu", "--names", "gaios.example"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_made_in_secrets_and_mended_there() {
    let pod = Pod::new().await;
    pod.make(&TWO_NODES).await;
    let (made, authority) = (pod.files(SECRET), pod.files(AUTHORITY));
    let names: Vec<_> = made.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "ca.crt",
            "client.crt",
            "client.key",
            "gateway-eu.crt",
            "gateway-eu.key",
            "node-1.crt",
            "node-1.key",
            "node-2.crt",
            "node-2.key",
            "server.crt",
            "server.key",
            "tickets.keys",
        ],
        "and not the key of the CA"
    );
    assert_eq!(authority.keys().collect::<Vec<_>>(), ["ca.crt", "ca.key"]);
    assert_eq!(authority["ca.crt"], made["ca.crt"]);
    let ca = Authority::from_pem(&text(&authority, "ca.crt"), &text(&authority, "ca.key")).unwrap();
    assert!(ca.has_signed(&text(&made, "node-2.crt")) && ca.has_signed(&text(&made, "server.crt")));

    // What is good stays, and what somebody else put there, too.
    let mut others = made.clone();
    others.insert("README".to_owned(), b"whose this is".to_vec());
    pod.api.set_secret(SECRET, &others);
    pod.make(&TWO_NODES).await;
    assert_eq!(pod.files(SECRET), others);

    // A third node, and another key of tickets before the one there was.
    pod.make(&["--nodes", "1,2,3", "--gateways", "eu", "--names", "gaios.example", "--rotate-tickets"]).await;
    let more = pod.files(SECRET);
    let third = Certificate::parse_pem(&text(&more, "node-3.crt")).unwrap();
    assert_eq!(third.uris, ["gaios://harbour/node/3"]);
    assert_eq!(more["node-1.crt"], made["node-1.crt"]);
    assert_eq!(KeyRing::parse(&text(&more, "tickets.keys")).unwrap().len(), 2);
    assert_eq!(text(&more, "tickets.keys").lines().last(), text(&made, "tickets.keys").lines().last());
    assert_eq!(pod.files(AUTHORITY), authority);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_ca_is_trusted_before_it_signs() {
    let pod = Pod::new().await;
    pod.make(&TWO_NODES).await;
    let before = pod.files(SECRET);
    let new = Authority::new("the next", Validity::days(10)).unwrap();
    let pair = [("ca.crt", new.certificate().to_owned()), ("ca.key", new.key())];
    pod.api.set_secret(
        AUTHORITY,
        &pair.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect(),
    );
    pod.make(&TWO_NODES).await;
    let between = pod.files(SECRET);
    let trusted = text(&between, "ca.crt");
    assert!(trusted.contains(new.certificate().trim()) && trusted.contains(text(&before, "ca.crt").trim()));
    assert_eq!(between["node-1.crt"], before["node-1.crt"]);
    pod.make(&TWO_NODES).await;
    let after = pod.files(SECRET);
    assert_eq!(after["ca.crt"], between["ca.crt"], "both, until an operator takes the old one away");
    for name in ["node-1.crt", "gateway-eu.crt", "server.crt", "client.crt"] {
        assert!(new.has_signed(&text(&after, name)), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_is_told_and_changes_nothing() {
    let pod = Pod::new().await;
    let check = |output: Output, expected: &str| {
        assert!(!output.status.success());
        assert!(said(&output).contains(expected), "{} does not say: {expected}", said(&output));
    };
    let full = tempfile::tempdir().unwrap();
    std::fs::write(full.path().join("ca.key"), "old").unwrap();
    check(pod.run_in(full.path().to_owned(), &TWO_NODES).await, "is not empty");

    pod.api.allow("let-me-in", vec![rules().remove(0)]);
    check(
        pod.run(&TWO_NODES).await,
        "cannot write the Secret pier-ca in namespace harbour: 403 Forbidden: secrets",
    );
    assert_eq!((pod.api.secret(SECRET), pod.api.secret(AUTHORITY)), (None, None));
    pod.api.allow("let-me-in", Vec::new());
    check(pod.run(&TWO_NODES).await, "cannot read the Secret pier-tls");

    pod.api.allow("let-me-in", rules());
    pod.make(&TWO_NODES).await;
    let before = pod.files(SECRET);
    pod.api.remove_secret(AUTHORITY);
    check(pod.run(&TWO_NODES).await, "bring it back");
    assert_eq!(pod.files(SECRET), before);

    std::fs::write(pod.account().join("token"), "another").unwrap();
    check(pod.run(&TWO_NODES).await, "401 Unauthorized: Unauthorized");
    let stranger = Authority::new("a stranger", Validity::days(1)).unwrap();
    std::fs::write(pod.account().join("ca.crt"), stranger.certificate()).unwrap();
    check(pod.run(&TWO_NODES).await, "the API of Kubernetes at 127.0.0.1:");
}
