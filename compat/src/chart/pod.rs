//! A pod as a process: its volumes are folders, its address is one of this network, its DNS server is its cluster's, and what its
//! containers are told is what the manifest says, but for the paths and the address that stand for its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::manifest::{Labels, Template, items, text};
use crate::Problem;

/// How long anything may take to come about, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a process.
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(20);
/// In a mount namespace of its own, with the resolver's configuration that a pod has, and an environment of its own.
const ENTER: &str = "mount --bind \"$0\" /etc/resolv.conf && exec env -i \"$@\"";

/// The programs that images hold.
pub(crate) struct Programs {
    pub(crate) gaios: PathBuf,
    pub(crate) etcdctl: PathBuf,
}

/// Files of a volume, by their paths within it.
pub(crate) type Files = Vec<(String, Vec<u8>)>;

/// What the kubelet gives to every pod of a cluster.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) resolv_conf: PathBuf,
    pub(crate) api: SocketAddr,
    /// Where folders of pods are, and claims that outlive them.
    pub(crate) pods: PathBuf,
    pub(crate) claims: PathBuf,
}

/// A pod that runs, or is about to.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) ip: Ipv4Addr,
    pub(crate) labels: Labels,
    /// Whether Services may lead to it.
    pub(crate) ready: bool,
    machine: Machine,
    dir: PathBuf,
    /// Where each mount of the containers is: path in the pod, folder here. Longest first.
    mounts: Vec<(String, PathBuf)>,
    child: Option<Child>,
}

impl Pod {
    /// A pod with folders for its volumes. Claims are kept from one pod of the name to the next.
    pub(crate) fn new(
        template: &Template,
        name: String,
        ip: Ipv4Addr,
        zone: &str,
        machine: &Machine,
    ) -> Result<Pod, Problem> {
        let dir = machine.pods.join(&name);
        let mut labels = template.labels.clone();
        if let Some((_, index)) = name.rsplit_once('-') {
            labels.insert("apps.kubernetes.io/pod-index".to_owned(), index.to_owned());
        }
        labels.insert("topology.kubernetes.io/zone".to_owned(), zone.to_owned());
        let volumes = items(&template.spec["volumes"]);
        let mut mounts = Vec::new();
        for container in template.init_containers().iter().chain(template.containers()) {
            for mount in items(&container["volumeMounts"]) {
                let volume = text(&mount["name"]);
                let is_claim = !volumes.iter().any(|known| known["name"] == volume);
                let folder =
                    if is_claim { machine.claims.join(&name).join(&volume) } else { dir.join(&volume) };
                let path = text(&mount["mountPath"]);
                if !mounts.iter().any(|(known, _)| *known == path) {
                    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
                    mounts.push((path, absolute(&folder)?));
                }
            }
        }
        mounts.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Pod { name, ip, labels, ready: false, machine: machine.clone(), dir, mounts, child: None })
    }

    /// What a text of the manifest is in here: paths of volumes, and the address that stands for all of a pod's own.
    pub(crate) fn translate(&self, text: &str) -> String {
        let mut text = text.replace("0.0.0.0:", &format!("{}:", self.ip));
        for (path, folder) in &self.mounts {
            text = text.replace(path, &folder.display().to_string());
        }
        text
    }

    /// The folder of a volume.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Puts files into a volume, as the kubelet does: all of them change at one moment, by a link that is replaced. What is
    /// there already is left alone.
    pub(crate) fn fill(&self, volume: &str, files: &Files, mode: u32) -> Result<(), Problem> {
        let folder = self.volume(volume);
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        fs::create_dir_all(&folder).map_err(failed)?;
        let is_there = |(path, bytes): &(String, Vec<u8>)| {
            fs::read(folder.join(path)).is_ok_and(|there| there == *bytes)
        };
        if !files.is_empty() && files.iter().all(is_there) {
            return Ok(());
        }
        let version = (1..).map(|n| format!("..version-{n}")).find(|name| !folder.join(name).exists());
        let version = version.unwrap_or_default();
        for (path, bytes) in files {
            let file = folder.join(&version).join(path);
            fs::create_dir_all(file.parent().unwrap_or(&folder)).map_err(failed)?;
            fs::write(&file, bytes).map_err(failed)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).map_err(failed)?;
        }
        let _ = fs::remove_file(folder.join("..new"));
        symlink(&version, folder.join("..new")).map_err(failed)?;
        fs::rename(folder.join("..new"), folder.join("..data")).map_err(failed)?;
        for (path, _) in files {
            let top = path.split('/').next().unwrap_or(path);
            if !folder.join(top).exists() {
                symlink(Path::new("..data").join(top), folder.join(top)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Runs the containers that come before, and starts the one that the pod is there for.
    pub(crate) async fn start(&mut self, template: &Template, programs: &Programs) -> Result<(), Problem> {
        self.run_init(template, programs).await?;
        let child = self.command(template.container(), programs)?.spawn();
        self.child = Some(child.map_err(|error| format!("{}: {error}", self.name))?);
        Ok(())
    }

    /// Runs all containers to their end. They must succeed.
    pub(crate) async fn run(&mut self, template: &Template, programs: &Programs) -> Result<(), Problem> {
        self.run_init(template, programs).await?;
        for container in template.containers() {
            self.run_one(container, programs).await?;
        }
        Ok(())
    }

    async fn run_init(&self, template: &Template, programs: &Programs) -> Result<(), Problem> {
        for container in template.init_containers() {
            self.run_one(container, programs).await?;
        }
        Ok(())
    }

    async fn run_one(&self, container: &Value, programs: &Programs) -> Result<(), Problem> {
        let ended = timeout(PATIENCE, self.command(container, programs)?.status()).await;
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => {
                Err(format!("{}: container {}: {status}\n{}", self.name, container["name"], self.log()))
            }
            Ok(Err(error)) => Err(format!("{}: container {}: {error}", self.name, container["name"])),
            Err(_) => Err(format!("{}: container {} does not end", self.name, container["name"])),
        }
    }

    fn command(&self, container: &Value, programs: &Programs) -> Result<Command, Problem> {
        let log_path = self.dir.join("log");
        let log = fs::File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(|error| format!("{}: {error}", log_path.display()))?;
        let errors = log.try_clone().map_err(|error| format!("{}: {error}", log_path.display()))?;
        let program = match container["command"][0].as_str() {
            None => &programs.gaios,
            Some("etcdctl") => &programs.etcdctl,
            Some(other) => return Err(format!("{}: no image here has {other}", self.name)),
        };
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", ENTER]).arg(&self.machine.resolv_conf);
        for variable in items(&container["env"]) {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                None => self.translate(&text(&variable["value"])),
                Some(path) => self.field(path)?,
            };
            command.arg(format!("{}={value}", text(&variable["name"])));
        }
        // Every pod is told of these, whatever its manifest says.
        command.arg(format!("KUBERNETES_SERVICE_HOST={}", self.machine.api.ip()));
        command.arg(format!("KUBERNETES_SERVICE_PORT={}", self.machine.api.port()));
        command.arg(absolute(program)?);
        for arg in items(&container["args"]) {
            command.arg(self.translate(&text(arg)));
        }
        command.stdin(Stdio::null()).stdout(log).stderr(errors).kill_on_drop(true);
        Ok(command)
    }

    /// What the downward API says of it.
    pub(crate) fn field(&self, path: &str) -> Result<String, Problem> {
        match path {
            "metadata.name" => Ok(self.name.clone()),
            "status.podIP" => Ok(self.ip.to_string()),
            _ => {
                let label = path.strip_prefix("metadata.labels['").and_then(|rest| rest.strip_suffix("']"));
                let label = label.ok_or_else(|| format!("{}: unknown field {path}", self.name))?;
                Ok(self.labels.get(label).cloned().unwrap_or_default())
            }
        }
    }

    /// Waits for what its readiness probe asks for.
    pub(crate) async fn wait_until_ready(&mut self, template: &Template) -> Result<(), Problem> {
        let begun = Instant::now();
        let probe = &template.container()["readinessProbe"]["httpGet"];
        let port =
            template.port(&text(&probe["port"])).ok_or_else(|| format!("{}: no port to ask", self.name))?;
        loop {
            let answer = get(self.ip, port, &text(&probe["path"])).await;
            if matches!(answer, Some((200, _))) {
                self.ready = true;
                return Ok(());
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || begun.elapsed() > PATIENCE {
                return Err(format!(
                    "{} is not ready after {:?}: {answer:?}, ended: {ended:?}\n{}",
                    self.name,
                    begun.elapsed(),
                    self.log()
                ));
            }
            sleep(ASK_AGAIN).await;
        }
    }

    /// Stops it as Kubernetes does: its pause before, SIGTERM, and it must be gone within the grace period.
    pub(crate) async fn stop(&mut self, template: &Template) -> Result<(), Problem> {
        self.ready = false;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let grace =
            Duration::from_secs(template.spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(30));
        let pause = &template.container()["lifecycle"]["preStop"]["sleep"]["seconds"];
        let pause = Duration::from_secs(pause.as_u64().unwrap_or(0));
        sleep(pause).await;
        let pid = child.id().ok_or_else(|| format!("{} has ended by itself\n{}", self.name, self.log()))?;
        // The child has not been waited for, so the id is its own.
        let told = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await;
        told.map_err(|error| format!("kill: {error}"))?;
        match timeout(grace.saturating_sub(pause), child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(format!("{} ended badly: {status}\n{}", self.name, self.log())),
            Ok(Err(error)) => Err(format!("{}: {error}", self.name)),
            Err(_) => Err(format!("{} has not ended within {grace:?}\n{}", self.name, self.log())),
        }
    }

    /// How many lines of its log have all these words.
    pub(crate) fn logged(&self, words: &[&str]) -> usize {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        text.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    /// The end of what it logged.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// `GET path`: status and body.
pub(crate) async fn get(ip: Ipv4Addr, port: u16, path: &str) -> Option<(u16, String)> {
    let ask = async {
        let mut stream = TcpStream::connect((ip, port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {ip}:{port}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split_whitespace().nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    };
    timeout(Duration::from_secs(5), ask).await.ok().flatten()
}

fn absolute(path: &Path) -> Result<PathBuf, Problem> {
    std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))
}
