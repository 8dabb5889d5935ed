//! As much of the API of Kubernetes as is asked for Secrets, for tests: a real server on loopback, over TLS, that lets bearers of
//! tokens do what roles allow them, and refuses a change of what has changed meanwhile.
//!
//! It is **not** Kubernetes: of an object it knows its name, its version and its data, and it keeps all else as it came.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tls::make::{Authority, Use, Validity};
use tls::{ClientAuth, MinVersion, Server, ServerFiles, ServerOptions};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// As the API server has it: what one Secret may hold, and a little more.
const BODY_BYTES_MAX: usize = 3 << 20;
/// How long the certificates of the server hold: longer than any test.
const VALID_DAYS: u32 = 2;

/// The files of a Secret.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What a role allows, of Secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `get`, `create`, `update`.
    pub verbs: Vec<String>,
    /// Of these alone; none stands for all.
    pub names: Vec<String>,
}

/// The server. It ends when it is dropped.
pub struct Api {
    address: SocketAddr,
    authority: String,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    secrets: BTreeMap<String, Value>,
    /// What bearers of a token may do.
    rules: BTreeMap<String, Vec<Rule>>,
    /// Grows with each change of anything.
    version: u64,
}

impl Api {
    /// Answers at `address`, with a certificate that it makes, in `folder`. Port 0 is one that is free.
    ///
    /// # Errors
    /// The port cannot be opened, or nothing can be written into the folder.
    pub async fn start(address: SocketAddr, folder: &Path) -> io::Result<Api> {
        let authority =
            Authority::new("an API server's", Validity::days(VALID_DAYS)).map_err(io::Error::other)?;
        let door = door(&authority, address.ip(), folder)?;
        let listener = TcpListener::bind(address).await?;
        let state = Arc::new(Mutex::new(State::default()));
        let (address, shared) = (listener.local_addr()?, Arc::clone(&state));
        let task = tokio::spawn(serve(listener, Arc::new(door), shared));
        Ok(Api { address, authority: authority.certificate().to_owned(), state, task })
    }

    /// Where it answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The CA of its certificate, in PEM.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Lets whoever shows this token do that, and nothing else.
    pub fn allow(&self, token: &str, rules: Vec<Rule>) {
        self.state.lock().rules.insert(token.to_owned(), rules);
    }

    /// The files of a Secret, if there is one of that name.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<Files> {
        self.state.lock().secrets.get(name).map(files)
    }

    /// Makes it a Secret with these files, and no others.
    pub fn set_secret(&self, name: &str, files: &Files) {
        let data: BTreeMap<_, _> =
            files.iter().map(|(file, bytes)| (file, BASE64_STANDARD.encode(bytes))).collect();
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data});
        self.state.lock().store(name, secret);
    }

    /// Removes it.
    pub fn remove_secret(&self, name: &str) {
        self.state.lock().secrets.remove(name);
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn door(authority: &Authority, ip: IpAddr, folder: &Path) -> io::Result<Server> {
    let purpose = Use::Server(vec![ip.to_string()]);
    let pair = authority.issue("api", &purpose, Validity::days(VALID_DAYS)).map_err(io::Error::other)?;
    let (certificate, key) = (folder.join("api.crt"), folder.join("api.key"));
    std::fs::write(&certificate, pair.certificate)?;
    std::fs::write(&key, pair.key)?;
    let files = ServerFiles { certificate, key, client_authorities: None, ticket_keys: None };
    let options = ServerOptions { files, client_auth: ClientAuth::Off, min_version: MinVersion::Tls12 };
    Server::load(options).map_err(io::Error::other)
}

async fn serve(listener: TcpListener, door: Arc<Server>, state: Arc<Mutex<State>>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (door, state) = (Arc::clone(&door), Arc::clone(&state));
        tokio::spawn(async move {
            let Ok(stream) = door.accept(socket).await else { return };
            let answer = service_fn(|request| answer(&state, request));
            // How a connection ended is the client's to tell.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

async fn answer(
    state: &Mutex<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    let (head, body) = request.into_parts();
    let told = head.headers.get("authorization").and_then(|told| told.to_str().ok());
    let token = told.and_then(|told| told.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
    let answered = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => state.lock().handle(&head.method, head.uri.path(), &token, &body.to_bytes()),
        Err(_) => Err((StatusCode::PAYLOAD_TOO_LARGE, "the body is too large".to_owned())),
    };
    let (status, object) = answered.unwrap_or_else(|(status, message)| {
        (status, json!({"kind": "Status", "status": "Failure", "message": message, "code": status.as_u16()}))
    });
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::new(object.to_string().into()))
}

type Answered = Result<(StatusCode, Value), (StatusCode, String)>;

impl State {
    fn handle(&mut self, method: &Method, path: &str, token: &str, body: &[u8]) -> Answered {
        let Some(rules) = self.rules.get(token) else {
            return Err((StatusCode::UNAUTHORIZED, "Unauthorized".to_owned()));
        };
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (verb, name) = match (method.as_str(), parts.as_slice()) {
            ("GET", ["api", "v1", "namespaces", _, "secrets", name]) => ("get", *name),
            ("PUT", ["api", "v1", "namespaces", _, "secrets", name]) => ("update", *name),
            ("POST", ["api", "v1", "namespaces", _, "secrets"]) => ("create", ""),
            _ => {
                let message = "the server could not find the requested resource".to_owned();
                return Err((StatusCode::NOT_FOUND, message));
            }
        };
        let allowed = rules.iter().any(|rule| {
            let named = rule.names.is_empty() || rule.names.iter().any(|allowed| allowed == name);
            named && rule.verbs.iter().any(|allowed| allowed == verb)
        });
        if !allowed {
            return Err((StatusCode::FORBIDDEN, format!("secrets \"{name}\" is forbidden: cannot {verb}")));
        }
        if verb == "get" {
            let found = self.secrets.get(name).cloned();
            return found.map(|secret| (StatusCode::OK, secret)).ok_or_else(|| not_found(name));
        }
        let secret = read(body).map_err(|message| (StatusCode::BAD_REQUEST, message))?;
        let named = secret["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let there = self.secrets.get(&named);
        if verb == "create" {
            if there.is_some() {
                return Err((StatusCode::CONFLICT, format!("secrets \"{named}\" already exists")));
            }
            return Ok((StatusCode::CREATED, self.store(&named, secret)));
        }
        let there = there.filter(|_| named == name).ok_or_else(|| not_found(name))?;
        let (said, known) = (&secret["metadata"]["resourceVersion"], &there["metadata"]["resourceVersion"]);
        if !said.is_null() && said != known {
            let message = format!("secrets \"{name}\": the object has been modified");
            return Err((StatusCode::CONFLICT, message));
        }
        Ok((StatusCode::OK, self.store(name, secret)))
    }

    fn store(&mut self, name: &str, mut secret: Value) -> Value {
        self.version += 1;
        secret["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.secrets.insert(name.to_owned(), secret.clone());
        secret
    }
}

fn not_found(name: &str) -> (StatusCode, String) {
    (StatusCode::NOT_FOUND, format!("secrets \"{name}\" not found"))
}

/// A Secret of which everything that is read here can be.
fn read(body: &[u8]) -> Result<Value, String> {
    let secret: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if secret["kind"] != "Secret" || secret["apiVersion"] != "v1" || !secret["metadata"]["name"].is_string() {
        return Err("is no Secret".to_owned());
    }
    for (file, text) in secret["data"].as_object().into_iter().flatten() {
        let decoded = text.as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
        decoded.ok_or_else(|| format!("data.{file}: is not base64"))?;
    }
    Ok(secret)
}

fn files(secret: &Value) -> Files {
    let data = secret["data"].as_object().into_iter().flatten();
    let decoded =
        data.filter_map(|(file, text)| Some((file.clone(), BASE64_STANDARD.decode(text.as_str()?).ok()?)));
    decoded.collect()
}
