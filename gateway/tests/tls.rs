//! Clients over TLS, against real gateways and over real sockets; what is said about settings; `dev --auto-tls`.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll};

use api::etcdserverpb as pb;
use gateway::Gateway;
use hyper_util::rt::TokioIo;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use tempfile::TempDir;
use tls::make::{Authority, Use, Validity};
use tls::{
    Client, ClientAuth, ClientOptions, KeyRing, MinVersion, Server, ServerFiles, ServerOptions, Stream,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint, Uri};

use support::TestCluster;

/// A folder with the certificates of a server, of a client and of a stranger.
struct Certificates {
    folder: TempDir,
    servers: Authority,
    clients: Authority,
}

impl Certificates {
    fn new() -> Certificates {
        let ca = |name| Authority::new(name, Validity::days(10)).unwrap();
        let made = Certificates {
            folder: tempfile::tempdir().unwrap(),
            servers: ca("servers"),
            clients: ca("clients"),
        };
        made.write("servers.crt", made.servers.certificate());
        made.write("clients.crt", made.clients.certificate());
        made.issue_server(10);
        made.issue("client", &made.clients, &Use::Client);
        made.issue("stranger", &ca("clients"), &Use::Client);
        made.write("tickets", &KeyRing::random().to_text());
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn issue(&self, name: &str, authority: &Authority, purpose: &Use) {
        let pair = authority.issue(name, purpose, Validity::days(5)).unwrap();
        self.write(&format!("{name}.crt"), &pair.certificate);
        self.write(&format!("{name}.key"), &pair.key);
    }

    fn issue_server(&self, days: u32) {
        let purpose = Use::Server(vec!["127.0.0.1".to_owned()]);
        let pair = self.servers.issue("server", &purpose, Validity::days(days)).unwrap();
        self.write("server.key", &pair.key);
        self.write("server.crt", &pair.certificate);
    }

    fn server(&self, client_auth: ClientAuth) -> Arc<Server> {
        let options = ServerOptions {
            files: ServerFiles {
                certificate: self.path("server.crt"),
                key: self.path("server.key"),
                client_authorities: (client_auth != ClientAuth::Off).then(|| self.path("clients.crt")),
                ticket_keys: Some(self.path("tickets")),
            },
            client_auth,
            min_version: MinVersion::Tls12,
        };
        Arc::new(Server::load(options).unwrap())
    }

    fn options(&self) -> ClientOptions {
        ClientOptions::new(self.path("servers.crt"))
    }

    fn options_of(&self, name: &str) -> ClientOptions {
        let own = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        ClientOptions { own: Some(own), ..self.options() }
    }
}

async fn gateway(cluster: &TestCluster, server: &Arc<Server>) -> Gateway {
    cluster.gateway_with(|options| options.door.tls = Some(Arc::clone(server))).await
}

async fn connect(client: &Client, gateway: &Gateway) -> Result<Stream, tls::HandshakeError> {
    let socket = TcpStream::connect(gateway.address()).await?;
    client.connect("127.0.0.1", socket).await
}

/// How a channel connects.
#[derive(Clone)]
struct Connector(Client);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let client = self.0.clone();
        Box::pin(async move {
            let address = uri.authority().unwrap().to_string();
            let socket = TcpStream::connect(address).await?;
            Ok(TokioIo::new(client.connect("127.0.0.1", socket).await?))
        })
    }
}

async fn channel(options: &ClientOptions, gateway: &Gateway) -> Result<Channel, tonic::transport::Error> {
    channel_to(options, &gateway.address().to_string()).await
}

async fn channel_to(options: &ClientOptions, address: &str) -> Result<Channel, tonic::transport::Error> {
    let connector = Connector(Client::load(options).unwrap());
    // The channel leaves TLS to the connector.
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_with_connector(connector).await
}

async fn put(channel: &Channel, key: &str, value: &str) -> Result<i64, tonic::Status> {
    let request =
        pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    let response = KvClient::new(channel.clone()).put(request).await?.into_inner();
    Ok(response.header.unwrap().revision)
}

/// Whether a client of these options gets through to the keyspace.
async fn is_served(options: &ClientOptions, gateway: &Gateway) -> bool {
    match channel(options, gateway).await {
        // By TLS 1.3 a client hears that it is refused after it believes to be in.
        Ok(channel) => put(&channel, "k", "v").await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn clients_are_let_in_as_their_certificates_say() {
    let (cluster, certificates) = (TestCluster::start(1).await, Certificates::new());
    for (auth, without, stranger) in [
        (ClientAuth::Off, true, true),
        (ClientAuth::Optional, true, false),
        (ClientAuth::Required, false, false),
    ] {
        let gateway = gateway(&cluster, &certificates.server(auth)).await;
        for tls12 in [false, true] {
            let served =
                async |options: ClientOptions| is_served(&ClientOptions { tls12, ..options }, &gateway).await;
            assert!(served(certificates.options_of("client")).await, "{auth:?}");
            assert_eq!(served(certificates.options()).await, without, "{auth:?}");
            assert_eq!(served(certificates.options_of("stranger")).await, stranger, "{auth:?}");
        }
        gateway.shutdown().await;
    }
}

#[tokio::test]
async fn http_is_served_over_tls_and_plain_text_is_not() {
    let (cluster, certificates) = (TestCluster::start(1).await, Certificates::new());
    let gateway = gateway(&cluster, &certificates.server(ClientAuth::Off)).await;
    let options = ClientOptions { protocols: vec![b"http/1.1".to_vec()], ..certificates.options() };
    let client = Client::load(&options).unwrap();
    let mut stream = connect(&client, &gateway).await.unwrap();
    assert_eq!(stream.protocol().as_deref(), Some(&b"http/1.1"[..]));
    let request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for plain in [&request[..], preface] {
        let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
        socket.write_all(plain).await.unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        // An alert at most.
        assert!(answer.len() <= 7, "{answer:?}");
    }
    let member = members(&certificates.options(), &gateway).await;
    assert_eq!(member, [format!("https://{}", gateway.address())]);
}

async fn members(options: &ClientOptions, gateway: &Gateway) -> Vec<String> {
    let channel = channel(options, gateway).await.unwrap();
    let mut client = pb::cluster_client::ClusterClient::new(channel);
    let list = client.member_list(pb::MemberListRequest::default()).await.unwrap().into_inner();
    list.members.into_iter().flat_map(|member| member.client_urls).collect()
}

/// The value of a metric whose line begins so.
async fn metric(gateway: &Gateway, line: &str) -> Option<f64> {
    let mut socket = TcpStream::connect(gateway.admin_address().unwrap()).await.unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    let found = text.lines().find_map(|written| written.strip_prefix(line)?.strip_prefix(' '))?;
    found.trim().parse().ok()
}

#[tokio::test]
async fn certificates_change_under_connections_that_stay() {
    let (cluster, certificates) = (TestCluster::start(1).await, Certificates::new());
    let server = certificates.server(ClientAuth::Required);
    let gateway = cluster
        .gateway_with(|options| {
            options.door.tls = Some(Arc::clone(&server));
            options.admin_listen = Some("127.0.0.1:0".parse().unwrap());
        })
        .await;
    let channel = channel(&certificates.options_of("client"), &gateway).await.unwrap();
    let mut watching = {
        let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
        let request =
            pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
        let requests = tokio_stream::once(request).chain(tokio_stream::pending());
        WatchClient::new(channel.clone()).watch(requests).await.unwrap().into_inner()
    };
    assert!(watching.next().await.unwrap().unwrap().created);
    let own = "gaios_tls_certificate_expiry_seconds{certificate=\"own\",door=\"client\"}";
    let days = async |gateway: &Gateway| (metric(gateway, own).await.unwrap() / 86_400.0).round();
    assert_eq!(days(&gateway).await, 10.0);

    // Half a change: the old certificate goes on, and that is told.
    let good = std::fs::read_to_string(certificates.path("server.crt")).unwrap();
    certificates.write("server.crt", "-----BEGIN CERTIFICATE-----\n");
    gateway.reload_certificates();
    let refused = "gaios_tls_reloads_total{door=\"client\",result=\"refused\"}";
    assert_eq!(metric(&gateway, refused).await, Some(1.0));
    assert!(is_served(&certificates.options_of("client"), &gateway).await);
    certificates.write("server.crt", &good);

    for round in 0..20 {
        certificates.issue_server(20 + round);
        gateway.reload_certificates();
        put(&channel, "k", "v").await.unwrap();
        assert!(is_served(&certificates.options_of("client"), &gateway).await);
    }
    assert_eq!(days(&gateway).await, 39.0);
    let taken = "gaios_tls_reloads_total{door=\"client\",result=\"taken\"}";
    assert_eq!(metric(&gateway, taken).await, Some(20.0));
    let mut events = 0;
    while events < 41 {
        events += watching.next().await.unwrap().unwrap().events.len();
    }

    // Another CA of clients: who is in stays, and the same certificate gets nobody in any more.
    let another = Authority::new("clients", Validity::days(10)).unwrap();
    certificates.write("clients.crt", another.certificate());
    gateway.reload_certificates();
    put(&channel, "k", "v").await.unwrap();
    assert!(!is_served(&certificates.options_of("client"), &gateway).await);
    let untrusted = "gaios_gateway_tls_handshake_failures_total{reason=\"untrusted\"}";
    assert_eq!(metric(&gateway, untrusted).await, Some(1.0));
}

#[tokio::test]
async fn a_client_goes_on_with_its_session_at_another_gateway() {
    let (cluster, certificates) = (TestCluster::start(1).await, Certificates::new());
    for auth in [ClientAuth::Off, ClientAuth::Required] {
        let servers = [certificates.server(auth), certificates.server(auth)];
        let gateways = [gateway(&cluster, &servers[0]).await, gateway(&cluster, &servers[1]).await];
        for tls12 in [false, true] {
            let options = ClientOptions {
                tls12,
                protocols: vec![b"http/1.1".to_vec()],
                ..certificates.options_of("client")
            };
            let client = Client::load(&options).unwrap();
            let mut resumed = Vec::new();
            for gateway in [&gateways[0], &gateways[1], &gateways[0], &gateways[1]] {
                let mut stream = connect(&client, gateway).await.unwrap();
                stream
                    .write_all(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    .await
                    .unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                resumed.push(stream.is_resumed());
            }
            assert_eq!(resumed, [false, true, true, true], "{auth:?}, TLS 1.2: {tls12}");
        }
        assert_eq!(servers.each_ref().map(|server| server.full_handshakes()), [2, 0]);
        assert_eq!(servers.each_ref().map(|server| server.resumed_handshakes()), [2, 4]);
    }
}

fn gaios(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gaios"));
    command.args(arguments).env_remove("GAIOS_NODE").env_remove("GAIOS_NAME");
    command
}

/// What `gaios check` says about a text, with the folder left out.
fn check(folder: &Path, text: &str) -> String {
    let file = folder.join("f.yaml");
    std::fs::write(&file, text).unwrap();
    let output = gaios(&["check", "--config", file.to_str().unwrap()]).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    said.replace(&format!("{}/", folder.display()), "").trim().to_owned()
}

#[test]
fn check_finds_what_is_wrong_with_files_by_line_and_field() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let make = |arguments: &[&str]| {
        let output =
            gaios(&["ctl", "certs", "--dir", dir.to_str().unwrap()]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let made =
        make(&["make", "--cluster", "harbour", "--nodes", "1,2", "--gateways", "eu", "--names", "g.example"]);
    assert!(made.contains("gaios://harbour/gateway/eu") && made.contains("g.example"), "{made}");
    make(&["tickets"]);
    let renewed = make(&["renew", "--within", "366", "-o", "json"]);
    let renewed: serde_json::Value = serde_json::from_str(&renewed).unwrap();
    assert_eq!(
        renewed.as_array().unwrap().iter().filter(|done| done["what"] == "made").count(),
        5,
        "{renewed}"
    );

    let replica = |tls: &str| {
        format!(
            "role: replica\nnode: 1\ndata_dir: d\nlisten: 127.0.0.1:2380\n\
             cluster: {{name: harbour, nodes: [{{id: 1, address: 'a:1'}}]}}\nlink_tls:\n{tls}"
        )
    };
    let at = |name: &str| dir.join(name).display().to_string();
    let link = |certificate: &str, key: &str, ca: &str| {
        replica(&format!(
            "  cert_file: {}\n  key_file: {}\n  ca_file: {}\n",
            at(certificate),
            at(key),
            at(ca)
        ))
    };
    assert_eq!(
        check(dir, &link("node-{node}.crt", "node-{node}.key", "ca.crt")),
        "f.yaml: a valid replica configuration"
    );
    assert_eq!(
        check(dir, &link("node-2.crt", "node-2.key", "ca.crt")),
        "gaios: f.yaml:7:14: link_tls.cert_file: node-2.crt says `gaios://harbour/node/2`, and this is \
         `gaios://harbour/node/1`"
    );
    assert_eq!(
        check(dir, &link("node-1.crt", "node-2.key", "node-1.crt")),
        "gaios: f.yaml:8:13: link_tls.key_file: node-2.key is not the key of the certificate in node-1.crt\n\
         f.yaml:9:12: link_tls.ca_file: node-1.crt has the certificate of `CN=gaios://harbour/node/1`, which is no CA and \
         can sign nothing"
    );
    assert_eq!(
        check(dir, &link("node-1.crt", "node-1.key", "nowhere.crt")),
        "gaios: f.yaml:9:12: link_tls.ca_file: nowhere.crt cannot be read: No such file or directory (os error 2)"
    );
    assert_eq!(
        check(dir, &link("node-1.crt", "node-1.key", "ca.crt").replace("harbour", "haven")),
        "gaios: f.yaml:7:14: link_tls.cert_file: node-1.crt says `gaios://harbour/node/1`, and this is \
         `gaios://haven/node/1`"
    );
    assert_eq!(
        check(dir, &link("gateway-eu.crt", "gateway-eu.key", "ca.crt")),
        "gaios: f.yaml:7:14: link_tls.cert_file: gateway-eu.crt says `gaios://harbour/gateway/eu`, and this is \
         `gaios://harbour/node/1`"
    );
    assert_eq!(
        check(dir, &link("client.crt", "client.key", "ca.crt")),
        "gaios: f.yaml:7:14: link_tls.cert_file: client.crt does not say `gaios://harbour/node/1`: the certificate names \
         no gaios:// URI"
    );
    let another = Authority::new("another CA", Validity::days(10)).unwrap();
    std::fs::write(dir.join("another.crt"), another.certificate()).unwrap();
    assert_eq!(
        check(dir, &link("node-1.crt", "node-1.key", "another.crt")),
        "gaios: f.yaml:9:12: link_tls.ca_file: another.crt has no CA that has signed our own certificate, so no other \
         member of the cluster would take it"
    );
    std::fs::write(dir.join("nothing.crt"), "nothing\n").unwrap();
    assert_eq!(
        check(dir, &link("nothing.crt", "nothing.crt", "nothing.crt")),
        "gaios: f.yaml:7:14: link_tls.cert_file: nothing.crt has no certificate (`-----BEGIN CERTIFICATE-----`)\n\
         f.yaml:8:13: link_tls.key_file: nothing.crt has no private key (`-----BEGIN PRIVATE KEY-----`)\n\
         f.yaml:9:12: link_tls.ca_file: nothing.crt has no certificate (`-----BEGIN CERTIFICATE-----`)"
    );
    let gateway = |tls: &str| {
        format!(
            "role: gateway\nname: g\nadvertise_client_urls: ['https://g.example:1']\n\
             cluster: {{name: harbour, nodes: [{{id: 1, address: 'a:1'}}]}}\nclient_tls:\n{tls}"
        )
    };
    let files = format!("  cert_file: {}\n  key_file: {}\n", at("server.crt"), at("server.key"));
    let clients =
        "  client_auth: required\n".to_owned() + &format!("  client_ca_file: {}\n", at("nowhere.crt"));
    assert_eq!(
        check(dir, &gateway(&(files.clone() + &clients))),
        "gaios: f.yaml:9:19: client_tls.client_ca_file: nowhere.crt cannot be read: No such file or directory (os error 2)"
    );
    let tickets = format!("  ticket_keys_file: {}\n", at("tickets.keys"));
    assert_eq!(check(dir, &gateway(&(files.clone() + &tickets))), "f.yaml: a valid gateway configuration");
    std::fs::write(dir.join("tickets.keys"), "12345\n").unwrap();
    assert_eq!(
        check(dir, &gateway(&(files.clone() + &tickets))),
        "gaios: f.yaml:8:21: client_tls.ticket_keys_file: tickets.keys has no key in line 1: a key is 64 hexadecimal \
         digits in a line of its own"
    );
    let old = Validity {
        not_before: std::time::SystemTime::now() - std::time::Duration::from_hours(96),
        not_after: std::time::SystemTime::now() - std::time::Duration::from_hours(73),
    };
    let ca = std::fs::read_to_string(dir.join("ca.crt")).unwrap();
    let ca = Authority::from_pem(&ca, &std::fs::read_to_string(dir.join("ca.key")).unwrap()).unwrap();
    let early = Validity {
        not_before: std::time::SystemTime::now() + std::time::Duration::from_secs(9015),
        ..Validity::days(5)
    };
    for (name, validity) in [("old", old), ("early", early)] {
        let node = Use::Member("gaios://harbour/node/1".parse().unwrap());
        let pair = ca.issue(name, &node, validity).unwrap();
        std::fs::write(dir.join(format!("{name}.crt")), pair.certificate).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), pair.key).unwrap();
    }
    assert_eq!(
        check(dir, &link("old.crt", "old.key", "ca.crt")),
        "gaios: f.yaml:7:14: link_tls.cert_file: old.crt has expired: it was valid until 3 days ago"
    );
    assert_eq!(
        check(dir, &link("early.crt", "early.key", "ca.crt")),
        "gaios: f.yaml:7:14: link_tls.cert_file: early.crt is not valid yet: it will be in 2 hours; is the clock of this \
         machine right?"
    );
    let expired = ca.issue("old", &Use::Server(vec!["g.example".to_owned()]), old).unwrap();
    std::fs::write(dir.join("server.crt"), expired.certificate).unwrap();
    std::fs::write(dir.join("server.key"), expired.key).unwrap();
    let expected = "f.yaml:6:14: client_tls.cert_file: server.crt has expired: it was valid until 3 days ago";
    assert_eq!(check(dir, &gateway(&files)), format!("gaios: {expected}"));
    let started = gaios(&["gateway", "--config", dir.join("f.yaml").to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8(started.stderr).unwrap();
    assert!(said.contains("client_tls.cert_file") && said.contains("has expired"), "{said}");
    assert!(!started.status.success());
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn dev_with_auto_tls_prints_what_a_client_needs() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let mut dev = gaios(&["dev", "--replicas", "1", "--listen", "127.0.0.1:0", "--auto-tls", "--data-dir"]);
    let mut dev = Process(dev.arg(&data).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(dev.0.stdout.take().unwrap()).lines();
    let said: Vec<String> = lines.by_ref().map(Result::unwrap).take_while(|line| line != "ready").collect();
    let hint = said.iter().find(|line| line.starts_with("try: etcdctl")).unwrap();
    let value = |flag: &str| {
        let found = hint.split(' ').find_map(|word| word.strip_prefix(flag)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("{flag} in {hint}")).to_owned()
    };
    assert_eq!(value("--cacert"), data.join("tls/ca.crt").display().to_string());
    let endpoint = value("--endpoints");
    let address = endpoint.strip_prefix("https://").unwrap();
    let without = ClientOptions::new(value("--cacert"));
    let with =
        ClientOptions { own: Some((value("--cert").into(), value("--key").into())), ..without.clone() };
    for options in [with, without] {
        let channel = channel_to(&options, address).await.unwrap();
        put(&channel, "greeting", "hello").await.unwrap();
    }
}
